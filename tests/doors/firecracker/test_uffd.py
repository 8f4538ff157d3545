"""A snapshot's memory that another process supplies as the guest touches it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringzero.errors import HostError
from ringzero.host.userfault import Userfault
from tests.doors.firecracker.microvm import MicroVm

PAGER = Path(__file__).with_name("pager.py")


def _refused():
    try:
        Userfault().close()
    except HostError as fault:
        return fault.message
    return ""


pytestmark = [
    pytest.mark.boot,
    pytest.mark.engine,
    pytest.mark.skipif(bool(_refused()), reason="no userfaultfd for this user"),
]


class Pager:
    """The process; `with` ends it."""

    def __init__(self, place, memory):
        self.socket, self._log = place / "pager.sock", place / "supplied"
        self._words = [sys.executable, PAGER, self.socket, memory, self._log]

    def __enter__(self):
        self.process = subprocess.Popen(self._words)
        while not self.socket.exists():
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    @property
    def supplied(self):
        """How many pages it has supplied."""
        while not (text := self._log.read_text()):
            # It is just being written.
            time.sleep(0.001)
        return int(text)


def place(tmp_path, name):
    found = tmp_path / name
    found.mkdir()
    return found


@pytest.fixture(scope="module")
def saved(guest, tmp_path_factory):
    """The files of a snapshot of a guest with a note."""
    directory = tmp_path_factory.mktemp("saved")
    files = {
        "snapshot_path": str(directory / "state"),
        "mem_file_path": str(directory / "memory"),
    }
    with MicroVm(directory) as vm:
        vm.boot(*guest)
        vm.shell("head -c 8000000 /dev/urandom > /data; md5sum /data > /sum; echo noted > /note")
        vm.patch("/vm", state="Paused")
        vm.put("/snapshot/create", **files)
    return directory / "state", directory / "memory"


def load(vm, state, pager):
    vm.put(
        *("/snapshot/load",),
        snapshot_path=str(state),
        mem_backend={"backend_type": "Uffd", "backend_path": str(pager.socket)},
        resume_vm=True,
    )


def test_a_life(saved, tmp_path):
    """It goes on, is saved itself, with all of its memory, and that goes on without the pager."""
    state, memory = saved
    files = {"snapshot_path": str(tmp_path / "s"), "mem_file_path": str(tmp_path / "m")}
    diff = {"snapshot_path": str(tmp_path / "s2"), "mem_file_path": str(tmp_path / "m2")}
    with Pager(tmp_path, memory) as pager, MicroVm(place(tmp_path, "vm")) as vm:
        load(vm, state, pager)
        assert vm.shell("cat /note; echo more > /more") == "noted\n"
        few = pager.supplied
        assert 0 < few * 4096 < memory.stat().st_size / 4
        assert "OK" in vm.shell("md5sum -c /sum")
        assert pager.supplied >= few + 8000000 // 4096
        vm.patch("/vm", state="Paused")
        vm.put("/snapshot/create", snapshot_type="Diff", **diff)
        vm.put("/snapshot/create", **files)
        vm.patch("/vm", state="Resumed")
        pager.process.send_signal(signal.SIGKILL)
        pager.process.wait()
        assert vm.shell("cat /more; md5sum -c /sum").endswith("OK\n")
    for name, one in (("full", files), ("diff", diff)):
        with MicroVm(place(tmp_path, name)) as copy:
            copy.put("/snapshot/load", **one, resume_vm=True)
            assert copy.shell("cat /note /more; md5sum -c /sum") == "noted\nmore\n/data: OK\n"


def test_it_ends_while_nobody_supplies(saved, tmp_path):
    state, memory = saved
    with Pager(tmp_path, memory) as pager, MicroVm(place(tmp_path, "vm")) as vm:
        load(vm, state, pager)
        vm.shell("true")
        os.kill(pager.process.pid, signal.SIGSTOP)
        vm.process.stdin.write(b"md5sum /data\n")
        vm.process.stdin.flush()
        time.sleep(0.5)
        began = time.monotonic()
        vm.process.terminate()
        assert vm.process.wait(10) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 2
        os.kill(pager.process.pid, signal.SIGCONT)
        pager.process.wait(10)
