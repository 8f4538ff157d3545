"""Building a Machine: what goes together, and what is refused with which message."""

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ringzero
from ringzero.config.machine import MachineConfig
from ringzero.engine.x86 import PortWrite
from ringzero.errors import (
    ConfigError,
    DiskError,
    GuestImageError,
    InvalidValueError,
    NotFoundError,
    RingzeroError,
)
from ringzero.vm.exit import ExitReason
from ringzero.vm.machine import Machine
from tests.engine.fake import FakeEngine

SOURCE = str(Path(ringzero.__file__).parents[1])


def build(**fields):
    return Machine(engine=FakeEngine(), **{"memory": "32M", **fields})


def test_machine_is_the_public_name():
    assert ringzero.Machine is Machine


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"memory": "1M"}, ConfigError, "memory"),
        ({"colour": "red"}, ConfigError, "colour"),
        ({"image": "No-Such"}, InvalidValueError, "No-Such"),
        ({"image": "micro", "kernel": "/vmlinuz"}, ConfigError, "own kernel"),
        ({"board": "nosuch"}, NotFoundError, "board"),
        ({"kernel": "/nonexistent"}, GuestImageError, "nonexistent"),
        ({"kernel": "/etc/hostname"}, GuestImageError, "hostname"),
        ({"disks": ["/nonexistent"]}, RingzeroError, "nonexistent"),
        ({"config": MachineConfig(), "cpus": 2}, InvalidValueError, "not both"),
    ],
)
def test_what_cannot_be_built(fields, error, words):
    with pytest.raises(error, match=words):
        build(**fields) if "config" not in fields else Machine(**fields)


def test_failed_builds_release_everything(tmp_path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(RingzeroError):
            build(disks=[f"{disk},format=raw", "/nonexistent"])
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_second_writer_is_refused(tmp_path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    with build(disks=[f"{disk},format=raw"]), pytest.raises(DiskError):
        build(disks=[f"{disk},format=raw"])
    with build(disks=[f"{disk},format=raw"]) as vm:
        assert "disk0" in vm.board.parts


def test_kernel_without_room_is_said_at_start(tmp_path):
    initrd = tmp_path / "initrd"
    # As much as memory has, but the kernel lies in it already.
    initrd.write_bytes(bytes(30 << 20))
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(tiny_kernel())
    with (
        build(kernel=str(kernel), initrd=str(initrd), memory="36M") as vm,
        pytest.raises(GuestImageError, match="initrd"),
    ):
        vm.start()


def tiny_kernel():
    """An ELF kernel of one instruction at 16 MiB (System V ABI: Ehdr, one Phdr)."""
    entry = 16 << 20
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, entry, 64, 0, 0,
                         64, 56, 1, 0, 0, 0)  # fmt: skip
    program = struct.pack("<IIQQQQQQ", 1, 5, 120, entry, entry, 1, 4096, 4096)
    return header + program + b"\xf4"


def test_kernel_is_loaded_at_start_and_not_again(tmp_path):
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(tiny_kernel())
    engine = FakeEngine(PortWrite(0x600, 1, 0x34))
    with Machine(engine=engine, memory="32M", kernel=str(kernel), command_line="quiet") as vm:
        vm.start()
        vm.start()
        assert vm.wait(10).reason is ExitReason.POWEROFF
        assert vm.cpu.registers.rip == 16 << 20
        assert vm.memory[16 << 20] == 0xF4
        assert vm.memory[0x20000:0x20006] == b"quiet\0"


def test_stopped_machines_do_not_start_again():
    vm = build()
    vm.stop()
    with pytest.raises(InvalidValueError):
        vm.start()


def test_agent_is_refused_where_there_is_none():
    with build() as vm, pytest.raises(InvalidValueError):
        vm.run("true")


def test_console_and_serial_input_reach_the_devices():
    with build(agent=True) as vm:
        vm.serial.write(b"typed")
        vm.console.write(b"typed")
        vm.console.resize(50, 132)
        assert vm.board.mmio.read(0xD0000100, 4) == 50 << 16 | 132
        state = vm.save().tree["devices"]
        assert state["serial"]["received"] and state["console.device"]["ports"][0]["backlog"]


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from tests.engine.fake import FakeEngine
from ringzero.engine.exits import Kicked
from ringzero.vm.machine import Machine

def spin(vcpu):
    vcpu.script.append(spin)
    return Kicked()

try:
    with Machine(engine=FakeEngine(spin), memory="32M", agent=True) as vm:
        print("running", flush=True)
        vm.run("sleep 1000")
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_a_busy_machine():
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(root=root)],
        env=os.environ | {"PYTHONPATH": SOURCE},
        stdout=subprocess.PIPE,
        text=True,
        # Background jobs of a shell ignore SIGINT, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert child.stdout.readline() == "running\n"
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=20)
    assert out == "interrupted\n" and child.returncode == 0
