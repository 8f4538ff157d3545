"""A confined process, looked at from inside: what it can do still, and what it cannot."""

import ctypes
import mmap
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

from ringzero.errors import HostError
from ringzero.host.jail import (
    confine,
    kernel,
    landlock,
    namespaces,
    privileges,
    probe,
    roles,
    seccomp,
)
from ringzero.host.jail.calls import NUMBERS
from ringzero.host.jail.confine import Needs
from ringzero.host.jail.landlock import Grant
from ringzero.host.jail.roles import Freedom, Role
from ringzero.host.service import serve_as
from tests.host.jail.children import in_child, outcome

NOBODY = 65534
ALLOWED = {part.name for part in probe.probe() if part.holds}
needs_jail = pytest.mark.skipif(
    not ALLOWED.issuperset(confine.ESSENTIAL), reason="this host has no Landlock or no seccomp"
)
USERS = [
    pytest.param(True, marks=pytest.mark.skipif(os.geteuid() != 0, reason="not root"), id="root"),
    pytest.param(False, id="user"),
]


def raw(name, *arguments):
    """Return a call of a system call by its name."""
    return lambda: kernel.call(NUMBERS[name], *arguments)


def unix_connection(path):
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(path))


def be(root):
    if not root and os.geteuid() == 0:
        privileges.become(NOBODY, NOBODY)
        # Who changes users hides, too (prctl(2), PR_SET_DUMPABLE); a user's own process does not.
        kernel.prctl(4, 1)


@needs_jail
@pytest.mark.parametrize("root", USERS)
def test_nothing_that_was_not_granted_is_reached(root, tmp_path):
    """A listing of all that a process which runs foreign code might try."""
    given, other = tmp_path / "given", tmp_path / "other"
    for folder in (given, other):
        folder.mkdir()
        folder.chmod(0o777)
    for path in [tmp_path, *tmp_path.parents[:3]]:
        path.chmod(0o755)
    secret = other / "secret"
    secret.write_text("not yours")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(other / "socket"))
    listener.listen()
    (other / "socket").chmod(0o777)
    parent = os.getpid()
    buffer = ctypes.create_string_buffer(64)

    def probe_all():
        be(root)
        confine.confine(Needs((Grant(given, landlock.WRITE),), alone=True), strict=True)
        tries = {
            "write what was given": lambda: (given / "file").write_text("mine"),
            "read what was given": lambda: (given / "file").read_text(),
            "be a thread": lambda: threading.Thread(target=int).start(),
            "map code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_EXEC | mmap.PROT_READ),
            "open": secret.read_text,
            "open by a way around": (given / "../other/secret").read_text,
            "write": lambda: (other / "new").write_text("x"),
            "truncate": lambda: os.truncate(secret, 0),
            "link out": lambda: os.link(secret, given / "link"),
            "move in": lambda: secret.rename(given / "moved"),
            "list": lambda: os.listdir("/"),
            "passwords": lambda: Path("/etc/shadow").read_text(),
            "memory of init": lambda: os.open("/proc/1/mem", os.O_RDONLY),
            "memory of the parent": lambda: os.open(f"/proc/{parent}/mem", os.O_RDONLY),
            "environment of the parent": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
            "exec": lambda: os.execv(sys.executable, [sys.executable, "-c", "0"]),
            "exec a memory file": raw("execveat", os.memfd_create("x"), b"", None, None, 0x1000),
            "fork": os.fork,
            "spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
            "connect": lambda: socket.socket(socket.AF_INET),
            "connect to a path": lambda: unix_connection(other / "socket"),
            "ptrace": raw("ptrace", 16, parent, 0, 0),
            "read another's memory": raw("process_vm_readv", parent, buffer, 1, buffer, 1, 0),
            "kill": lambda: os.kill(parent, 0),
            "kill a thread": raw("tgkill", parent, parent, 0),
            "kill by descriptor": lambda: signal.pidfd_send_signal(os.pidfd_open(parent), 0),
            "take a descriptor": raw("pidfd_getfd", os.pidfd_open(parent), 0, 0),
            "mount": lambda: kernel.mount("none", str(given), "tmpfs", 0),
            "new namespaces": lambda: kernel.unshare(0x10000000),
            "chroot": lambda: os.chroot(given),
            "io_uring": raw("io_uring_setup", 1, buffer),
            "bpf": raw("bpf", 0, buffer, 64),
            "userfaultfd": raw("userfaultfd", 0),
            "keys": raw("keyctl", 0, 0),
            "type for others": raw("ioctl", 0, 0x5412, buffer),
            "a device": lambda: os.mknod(given / "device", 0o60600, 0x800),
            "be root": lambda: os.setuid(0),
            "a module": raw("init_module", buffer, 0, b""),
        }  # fmt: skip
        return {name: outcome(do) for name, do in tries.items()}

    found = in_child(probe_all)
    reached = {name for name, result in found.items() if result == "done"}
    allowed = {"write what was given", "read what was given", "be a thread", "map code"}
    assert reached == allowed, found
    assert secret.read_text() == "not yours"


@needs_jail
def test_what_is_open_stays_open(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))

    def use():
        file = os.open(path, os.O_RDWR)
        one, other = socket.socketpair()
        confine.confine(Needs(()), strict=True)
        os.pwrite(file, b"x", 100)
        one.send(b"y")
        return [os.pread(file, 1, 100).decode(), other.recv(1).decode(), outcome(path.read_bytes)]

    assert in_child(use) == ["x", "y", "EACCES"]


@needs_jail
def test_children_and_sockets_where_they_are_needed():
    def use():
        freedom = Freedom(internet=True, local=True, children=True)
        confine.confine(Needs((), freedom), strict=True)
        child = os.fork()
        if child == 0:
            os._exit(outcome(lambda: os.execv("/bin/true", ["true"])) != "EPERM")
        status = os.waitpid(child, 0)[1]
        socket.socket(socket.AF_INET).close()
        socket.socket(socket.AF_UNIX).close()
        refused = outcome(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
        return [status, refused, outcome(lambda: kernel.unshare(0x40000000))]

    assert in_child(use) == [0, "EPERM", "EPERM"]


@needs_jail
def test_who_has_a_network_connects_to_no_path(tmp_path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()

    def use():
        grants = (Grant(tmp_path, landlock.WRITE),)
        freedom = Freedom(internet=True, children=True)
        confine.confine(Needs(grants, freedom), strict=True)
        one, other = socket.socketpair()
        other.close()
        return [
            outcome(lambda: unix_connection(tmp_path / "socket")),
            outcome(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)),
            outcome(lambda: one.connect(str(tmp_path / "socket"))),
        ]

    assert in_child(use) == ["EPERM", "EPERM", "EISCONN"]


@needs_jail
def test_threads_have_less_by_what_they_do(tmp_path):
    """A vCPU's thread starts no process and makes no folder, though the process may."""

    def use():
        grants = (Grant(tmp_path, landlock.WRITE),)
        freedom = Freedom(internet=True, children=True, trees=True)
        confine.confine(Needs(grants, freedom), strict=True)
        found = {}

        def serve(role):
            serve_as(role)
            found[role] = [
                outcome(os.fork) if role != "control" else "",
                outcome(lambda: (tmp_path / role).mkdir()),
                outcome(lambda: socket.socket(socket.AF_INET).close()),
            ]

        for role in Role:
            thread = threading.Thread(target=serve, args=(role.value,))
            thread.start()
            thread.join()
        return found

    assert in_child(use) == {
        "control": ["", "done", "done"],
        "io": ["EPERM", "EPERM", "EPERM"],
        "vcpu": ["EPERM", "EPERM", "done"],
    }


def test_a_process_that_is_not_confined_has_no_filter():
    serve_as("vcpu")
    assert confine.parts() == ()


def test_on_a_host_without_landlock_strict_is_refused_and_auto_says_so(monkeypatch):
    monkeypatch.setattr(landlock, "version", lambda: 0)

    def strict():
        with pytest.raises(HostError, match=r"no.* strict jail: landlock"):
            confine.confine(Needs(()), strict=True)

    def auto():
        return {part.name: part.holds for part in confine.confine(Needs(()))}

    in_child(strict)
    found = in_child(auto)
    assert not found["landlock"]
    assert found["no-new-privileges"]


def test_on_a_host_without_user_namespaces_the_rest_holds(monkeypatch):
    def refuse(flags):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(kernel, "unshare", refuse)
    found = in_child(lambda: {p.name: p.holds for p in confine.confine(Needs((), alone=True))})
    assert not found["namespaces"]
    assert found["no-new-privileges"]
    assert found["seccomp"] == ("seccomp" in ALLOWED)


@pytest.mark.parametrize("root", USERS)
def test_namespaces_are_had_where_users_may_have_them(root):
    """And who one is stays what it was: clients are told by it."""

    def allowed():
        be(root)
        return outcome(lambda: namespaces.enter(("ipc", "uts", "net")))

    def use():
        be(root)
        user = os.geteuid()
        found = confine.confine(Needs((), alone=True))
        return [{p.name: p.holds for p in found}, os.geteuid() == user]

    try:
        in_child(allowed)
    except AssertionError:
        pytest.skip("this host lets nobody make namespaces")
    parts, same = in_child(use)
    assert parts["namespaces"]
    assert same


def test_an_older_landlock_is_used_as_far_as_it_goes(monkeypatch, tmp_path):
    """The size of the attributes, and the accesses, are those that the version knows."""
    if landlock.version() < landlock.SCOPE_ABI:
        pytest.skip("this kernel is older itself")
    for abi in range(landlock.MINIMUM_ABI, landlock.SCOPE_ABI):
        monkeypatch.setattr(landlock, "version", lambda abi=abi: abi)

        def use():
            confine.confine(Needs((Grant(tmp_path, landlock.WRITE),)), strict=True)
            (tmp_path / "file").write_text("x")
            return outcome(lambda: Path("/etc/passwd").read_text())

        assert in_child(use) == "EACCES"


def test_a_process_with_other_threads_is_not_called_confined(monkeypatch):
    monkeypatch.setattr(confine, "_PATIENCE", 0.01)

    def use():
        wait = threading.Event()
        threading.Thread(target=wait.wait, daemon=True).start()
        found = confine.confine(Needs(()))
        wait.set()
        return {part.name: part.holds for part in found}

    found = in_child(use)
    assert not found["landlock"]
    assert not found["capabilities"]


def test_the_tables_name_only_calls_that_there_are():
    for role in Role:
        for freedom in (Freedom(), Freedom(*[True] * 7)):
            rules = roles.rules(role, freedom, 1)
            assert rules.keys() <= NUMBERS.keys()
            assert not rules.keys() & {
                "execve", "execveat", "ptrace", "mount", "bpf", "io_uring_setup", "setns",
                "unshare", "keyctl", "process_vm_readv", "pidfd_getfd", "chroot",
            }  # fmt: skip


def test_a_probe_changes_nothing_here():
    before = Path("/proc/self/status").read_text().split("NoNewPrivs:")[1].split()[0]
    probe.probe()
    assert Path("/proc/self/status").read_text().split("NoNewPrivs:")[1].split()[0] == before
    assert confine.parts() == ()


def test_a_filter_of_no_sense_is_an_error():
    def use():
        privileges.forbid_new()
        with pytest.raises(HostError):
            seccomp.install(bytes(8), all_threads=True)

    in_child(use)
