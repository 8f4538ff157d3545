"""An escape from a machine, simulated: a test's code inside the process that runs the guest."""

import json
import os
import socket
from pathlib import Path

import pytest

import ringzero
from ringzero.config.machine import MachineConfig
from ringzero.control.host import directory as directories
from ringzero.control.machine import jail
from ringzero.errors import ConflictError
from ringzero.host.jail import confine, landlock, probe
from ringzero.settings import Jail
from tests.host.jail.children import in_child, outcome

ALLOWED = {part.name for part in probe.probe() if part.holds}
pytestmark = pytest.mark.skipif(
    not ALLOWED.issuperset(confine.ESSENTIAL), reason="this host has no Landlock or no seccomp"
)


def tries(tmp_path, own, folder):
    """Return what code that has taken over the process might try, by what it is called."""
    machines, home = own.parent, Path("~").expanduser()

    def unix():
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(tmp_path / "listener"))

    return {
        "write what it says while it runs": lambda: (own / "run" / "file").write_text("x"),
        "write into its own directory": lambda: (own / "file").write_text("x"),
        "rewrite its description": lambda: (own / "machine.json").write_text("{}"),
        "replace its description": lambda: (own / "run" / "f").rename(own / "machine.json"),
        "say who it is": lambda: (own / "process.json").write_text("{}"),
        "take its lock away": lambda: (own / "lock").unlink(),
        "put a link there": lambda: (own / "run" / "console.log").symlink_to(home / ".profile"),
        "put a pipe there": lambda: os.mkfifo(own / "run" / "exit.json"),
        "move what it says away": lambda: (own / "run").rename(own / "other"),
        "make a machine": lambda: (machines / "new").mkdir(),
        "read another machine": lambda: (machines / "other" / "machine.json").read_text(),
        "write into its folder": lambda: (folder / "file").write_text("x"),
        "see the other machines": lambda: os.listdir(machines),
        "change another machine": lambda: (machines / "other" / "file").write_text("x"),
        "write beside it": lambda: (tmp_path / "beside").write_text("x"),
        "read the home": lambda: os.listdir(home),
        "read accounts": lambda: Path("/etc/passwd").read_text(),
        "write the cache": lambda: (ringzero.settings.CACHE_DIR.get() / "x").write_text("x"),
        "init's memory": lambda: os.open("/proc/1/mem", os.O_RDWR),
        "its parent's variables": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "start a program": lambda: os.posix_spawn("/bin/true", ["true"], {}),
        "start a process": lambda: os.fork() or os._exit(0),
        "a connection": lambda: socket.socket(socket.AF_INET).close(),
        "a connection by path": unix,
        "signal its parent": lambda: os.kill(os.getppid(), 0),
    }


@pytest.mark.engine
@pytest.mark.parametrize("level", [Jail.STRICT, Jail.AUTO])
def test_who_escapes_from_the_guest_has_what_was_handed_in(level, tmp_path):
    own, folder = tmp_path / "machines" / "own", tmp_path / "folder"
    for path in (own / "run", folder, tmp_path / "machines" / "other"):
        path.mkdir(parents=True)
    for path in (own, tmp_path / "machines" / "other"):
        for name in ("machine.json", "process.json", "lock"):
            (path / name).touch()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "listener"))
    listener.listen()

    def escape():
        with ringzero.Machine(
            image="micro", memory="256M", shares=[f"{folder}:/mnt"], net="none"
        ) as machine:
            jail.enter(machine, level, directories.MachineDirectory(own))
            machine.run("echo guest > /mnt/guest", check=True)
            found = {name: outcome(do) for name, do in tries(tmp_path, own, folder).items()}
            machine.run("true", check=True)
        return found

    found = in_child(escape)
    reached = {name for name, result in found.items() if result == "done"}
    allowed = {"write what it says while it runs", "write into its folder"}
    if level is Jail.AUTO:
        # What copies are: docs/jail.md says so.
        allowed.add("start a process")
    assert reached == allowed, found
    assert (folder / "guest").read_text() == "guest\n"


def test_no_sockets_without_a_network_and_no_capabilities_without_folders():
    plain = MachineConfig.create(net="none")
    found = jail.needs(plain, Jail.STRICT, "soft")
    assert not found.freedom.internet
    assert not found.freedom.local
    assert not found.capabilities
    assert not found.freedom.kvm
    user = jail.needs(MachineConfig.create(net="user"), Jail.STRICT, "kvm")
    assert user.freedom.internet
    assert user.freedom.kvm
    assert not user.freedom.local


def test_disks_and_folders_are_granted_as_they_are_described(tmp_path):
    for name in ("a.img", "b.img"):
        (tmp_path / name).write_bytes(bytes(512))
    config = MachineConfig.create(
        disks=[f"{tmp_path}/a.img", f"{tmp_path}/b.img,ro"],
        shares=[f"{tmp_path}:/one:ro", f"{tmp_path}:/two"],
    )
    found = jail.needs(config, Jail.STRICT, "soft").grants
    granted = [grant.access for grant in found if grant.path.is_relative_to(tmp_path)]
    disk = landlock.READ_FILE
    written = disk | landlock.WRITE_FILE | landlock.TRUNCATE
    assert granted == [written, disk, landlock.READ, landlock.WRITE]


def test_what_was_not_handed_in_is_refused_with_a_way_out(tmp_path):
    def use():
        grant = landlock.Grant(tmp_path / "given", landlock.WRITE)
        confine.confine(confine.Needs((grant,), alone=True))
        jail.require_path("web", tmp_path / "given" / "below")
        messages = []
        for ask in (
            lambda: jail.require_path("web", tmp_path / "other"),
            lambda: jail.require_children("web", "copies"),
            lambda: jail.require_network("web", "user"),
            lambda: jail.require_network("web", "tap"),
        ):
            with pytest.raises(ConflictError) as caught:
                ask()
            messages.append(caught.value.hint)
        jail.require_network("web", "none")
        return messages

    assert all("--jail" in hint for hint in in_child(use))


def test_who_is_not_confined_may_do_all(tmp_path):
    jail.require_path("web", tmp_path)
    jail.require_children("web", "copies")
    jail.require_network("web", "user")


def test_a_copy_of_a_jailed_machine_has_a_pagemap_of_its_own():
    """Its original's /proc/self is not its own, and another it cannot open: it is handed in."""
    from ringzero.host import memory

    def use():
        ours, its = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            confine.confine(confine.Needs(()), strict=True)
            _, (descriptor,), _, _ = socket.recv_fds(its, 1, 1)
            untold = memory.HostMemory("ram", 1 << 20)
            untold.view[4096:4097] = b"x"
            before = untold.touched()
            memory.lend_pagemap(descriptor)
            its.sendall(json.dumps([before, untold.touched()]).encode())
            os._exit(0)
        its.close()
        pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
        socket.send_fds(ours, [b"g"], [pagemap])
        told = json.loads(ours.recv(4096))
        os.waitpid(pid, 0)
        return told

    before, after = in_child(use)
    assert before == [[0, 1 << 20]]
    assert after == [[4096, 8192]]


def test_links_and_pipes_that_a_process_left_are_not_followed(tmp_path):
    from ringzero.api.values import ExitRecord
    from ringzero.control.host.records import load, save
    from ringzero.control.machine.logfile import LogFile

    profile = tmp_path / "profile"
    profile.write_text("mine")
    (tmp_path / f"exit.json.{os.getpid()}.new").symlink_to(profile)
    (tmp_path / "console.log").symlink_to(profile)
    save(ExitRecord("poweroff", "", 0, 1.0), tmp_path / "exit.json")
    LogFile(tmp_path / "console.log").write(b"evil")
    assert profile.read_text() == "mine"
    assert load(ExitRecord, tmp_path / "exit.json").reason == "poweroff"


def test_what_is_written_into_lent_files(tmp_path):
    from ringzero.api.values import ExitRecord
    from ringzero.control.host.records import StatusRecord, load
    from ringzero.control.machine.logfile import LentLog
    from ringzero.control.machine.runfiles import LentFiles

    flags = os.O_RDWR | os.O_CREAT
    files = {name: os.open(tmp_path / name, flags) for name in ("status.json", "exit.json")}
    lent = LentFiles(files, socket.socket(socket.AF_UNIX).detach())
    assert load(ExitRecord, tmp_path / "exit.json") is None
    lent.save(ExitRecord("died", "x" * 2000, 1, 1.0), "exit.json")
    lent.save(ExitRecord("poweroff", "", 0, 1.0), "exit.json")
    assert load(ExitRecord, tmp_path / "exit.json") == ExitRecord("poweroff", "", 0, 1.0)
    lent.save(StatusRecord("running", 1.0), "status.json")
    assert load(StatusRecord, tmp_path / "status.json").status == "running"
    lent.leave()
    logs = [os.open(tmp_path / name, flags | os.O_APPEND) for name in ("log", "log.1")]
    log = LentLog(*logs, limit=8)
    for text in (b"one\n", b"two\n", b"three\n"):
        log.write(text)
    assert (tmp_path / "log").read_bytes() == b"three\n"
    assert (tmp_path / "log.1").read_bytes() == b"one\ntwo\n"
    log.close()
