"""`ringzero-jailer`: a microVM with a root, a user and namespaces of its own."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringzero.errors import RingzeroError

USER = 64321
JAILER = [sys.executable, "-P", "-m", "ringzero.cli.jailer"]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change roots and users")


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        # unix(7) has 107 bytes for a path.
        folder = os.open(self.path.parent, os.O_PATH)
        self.sock.connect(f"/proc/self/fd/{folder}/{self.path.name}")
        os.close(folder)


def ask(path, method, target, body=None):
    with contextlib.closing(Connection(path)) as link:
        link.request(method, target, None if body is None else json.dumps(body))
        answer = link.getresponse()
        return answer.status, answer.read().decode()


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def refused(*flags):
    done = subprocess.run([*JAILER, *flags], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "firecracker"
    path.write_text("")
    return path


def test_bad_flags_are_told(program, tmp_path):
    whole = {"--id": "a", "--exec-file": str(program), "--uid": "1", "--gid": "1"}

    def flags(**changes):
        given = whole | {"--" + k.replace("_", "-"): v for k, v in changes.items()}
        return [word for pair in given.items() if pair[1] is not None for word in pair]

    assert "--id is missing" in refused(*flags(id=None))
    assert "is no ID" in refused(*flags(id="../x"))
    assert "no such file" in refused(*flags(exec_file=str(tmp_path / "nothing")))
    assert "--uid" in refused(*flags(uid="root"))
    if os.geteuid() == 0:
        base = ["--chroot-base-dir", str(tmp_path / "jails")]
        assert "resource-limit" in refused(*base, *flags(resource_limit="core=1"))
        assert "FILE=VALUE" in refused(*flags(cgroup="x/../y=1"), *base)
        assert "--parent-cgroup" in refused(*flags(parent_cgroup="../x"), *base)


@as_root
@pytest.mark.engine
@pytest.mark.boot
def test_a_machine_in_a_jail_of_firecrackers_layout(program, tmp_path):
    """Its socket is where SDKs look for it, and its process has nothing of the host's."""
    from ringzero.image import micro

    try:
        image = micro.ensure()
    except RingzeroError as fault:
        pytest.skip(f"no guest image: {fault.message}")
    for path in [tmp_path, *tmp_path.parents[:3]]:
        path.chmod(0o755)
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o644)
    root = tmp_path / "jails" / "firecracker" / "web-1" / "root"
    # As SDKs do: the files of the machine are put into its root before.
    root.mkdir(parents=True)
    for name, path in (("kernel", image.kernel), ("initrd", image.initrd)):
        shutil.copy(path, root / name)
        (root / name).chmod(0o644)
    command = [
        *JAILER, "--id", "web-1", "--exec-file", str(program), "--uid", str(USER), "--gid",
        str(USER), "--chroot-base-dir", str(tmp_path / "jails"), "--new-pid-ns",
        "--resource-limit", "no-file=1024", "--", "--api-sock", "/run/firecracker.socket",
    ]  # fmt: skip
    path = root / "run/firecracker.socket"
    with (tmp_path / "log").open("wb") as log:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)
    pid = int((root / "firecracker.pid").read_text())
    try:
        until(path.exists)
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}" in status
        assert "NoNewPrivs:\t1" in status
        assert [line.split()[2:] for line in status.splitlines() if "NSpid" in line] == [["1"]]
        assert "CapEff:\t0000000000000000" in status
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert "Max open files            1024" in limits
        seen = Path(f"/proc/{pid}/root")
        assert (seen / "kernel").exists()
        assert not (seen / str(secret).lstrip("/")).exists()
        assert not (seen / "etc/shadow").exists()
        assert json.loads(ask(path, "GET", "/")[1])["id"] == "web-1"
        source = {
            "kernel_image_path": "/kernel",
            "initrd_path": "/initrd",
            "boot_args": image.command_line,
        }
        assert ask(path, "PUT", "/boot-source", source) == (204, "")
        assert ask(path, "PUT", "/actions", {"action_type": "InstanceStart"}) == (204, "")
        assert json.loads(ask(path, "GET", "/")[1])["state"] == "Running"
        os.kill(pid, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{pid}").exists())
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # What was bound into it was seen in the jail only, and is gone with it.
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@contextlib.contextmanager
def jailed(program, tmp_path, *flags):
    """Run a jailer with these flags until its API answers; yield the process's number."""
    for path in [tmp_path, *tmp_path.parents[:3]]:
        path.chmod(0o755)
    root = tmp_path / "jails" / "firecracker" / "net-1" / "root"
    words = [
        *JAILER, "--id", "net-1", "--exec-file", str(program), "--uid", str(USER), "--gid",
        str(USER), "--chroot-base-dir", str(tmp_path / "jails"), *flags,
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        started = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    path, pid = root / "run/firecracker.socket", 0
    try:
        until(lambda: path.exists() or started.poll() not in (None, 0))
        assert path.exists(), (tmp_path / "log").read_text()
        pid = int((root / "firecracker.pid").read_text())
        assert json.loads(ask(path, "GET", "/")[1])["id"] == "net-1"
        yield started, pid
    finally:
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            until(lambda: started.poll() is not None)
            until(lambda: not Path(f"/proc/{pid}").exists())
        started.kill()
        started.wait()


@as_root
@pytest.mark.engine
def test_another_network_and_a_session_of_its_own(program, tmp_path):
    name = f"rz{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no network namespaces: {made.stderr.decode()}")
    try:
        place = Path("/run/netns", name)
        with jailed(program, tmp_path, "--netns", str(place), "--daemonize") as (started, pid):
            # The caller has nothing to wait for.
            until(lambda: started.poll() is not None)
            assert started.returncode == 0
            assert os.stat(f"/proc/{pid}/ns/net").st_ino == place.stat().st_ino
            assert os.getsid(pid) == pid
            outputs = {str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in range(3)}
            assert outputs == {"/dev/null"}
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@as_root
@pytest.mark.engine
@pytest.mark.parametrize("version", ["1", "2"])
def test_control_groups_of_its_own(program, tmp_path, version):
    unified = Path("/sys/fs/cgroup/unified")
    unified = unified if unified.is_dir() else Path("/sys/fs/cgroup")
    if version == "1":
        group, setting = Path("/sys/fs/cgroup/cpu"), ("cpu.shares", "512")
    else:
        # Every group of version 2 has it, whatever controllers there are.
        group, setting = unified, ("cgroup.max.depth", "3")
    if not (group / "cgroup.procs").exists():
        pytest.skip(f"this host has no control groups of version {version}")
    parent = f"rz{os.getpid()}"
    place = group / parent / "net-1"
    flags = ["--cgroup", "=".join(setting), "--parent-cgroup", parent]
    try:
        with jailed(program, tmp_path, *flags, "--cgroup-version", version) as (_, pid):
            assert (place / setting[0]).read_text().strip() == setting[1]
            assert str(pid) in (place / "cgroup.procs").read_text().split()
    finally:
        for made in (place, place.parent):
            with contextlib.suppress(FileNotFoundError):
                made.rmdir()
