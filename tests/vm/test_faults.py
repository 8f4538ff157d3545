"""An exception on any thread that serves a machine ends it, by name, and leaves nobody waiting."""

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from ringzero import Machine
from ringzero.core.memory import GuestMemory
from ringzero.devices.virtio.kinds.block import Block
from ringzero.engine.kvm.alarm import Alarm
from ringzero.engine.kvm.doorbell import Doorbells
from ringzero.errors import GuestError
from ringzero.host.service import ServiceThread
from ringzero.net.alarm import Alarm as LimitAlarm
from ringzero.net.lazy import LazyNetwork
from ringzero.net.networks.socket import SocketNetwork
from ringzero.net.proxy.loop import EventLoop
from ringzero.vm.ends.vsock import VsockSockets
from ringzero.vm.guest.agent import Agent
from ringzero.vm.guest.channels import PortChannels
from ringzero.vm.guest.command import Command
from ringzero.vm.runloop import RunControl
from ringzero.vm.saved import workingset

SOON = 60
# A network is loaded when a frame wants it.
USE_THE_NETWORK = (
    "ip link set eth0 up; ip a add 10.0.2.15/24 dev eth0; wget http://10.0.2.2; sleep 60"
)


class BrokenError(Exception):
    """What no code of ours expects."""


def broken(*_args, **_named):
    raise BrokenError("it is broken")


class Someone:
    on_fault = None


def test_a_fault_goes_to_who_is_named():
    faults = []
    server = Someone()
    thread = ServiceThread(server, broken, "test")
    server.on_fault = faults.append
    thread.start()
    thread.join(SOON)
    assert [str(fault) for fault in faults] == ["it is broken"]


def test_a_fault_that_nobody_hears_of_is_any_threads(monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_type))
    thread = ServiceThread(Someone(), broken, "test")
    thread.start()
    thread.join(SOON)
    assert seen == [BrokenError]


def test_a_doorbell_that_fails_keeps_nobody_who_settles():
    faults = []
    bells = Doorbells(faults.append)
    os.eventfd_write(bells.add(broken), 1)
    bells.settle()
    bells.settle()
    bells.close()
    assert len(faults) == 1


def test_an_alarm_that_fails():
    told = threading.Event()
    alarm = Alarm(broken, lambda fault: told.set())
    alarm.set(0)
    assert told.wait(SOON)
    alarm.close()


@pytest.fixture
def parts(tmp_path):
    """What a machine with every kind of device is described by."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    return {
        "disk": {"disks": [f"{disk},format=raw"]},
        "vsock": {"vsock": str(tmp_path / "vsock")},
        "net-socket": {"net": f"socket={tmp_path / 'net'},listen=on"},
        "net-user": {"net": "user"},
        "net-limited": {"net": "user,packets=1"},
    }


@pytest.mark.boot
@pytest.mark.parametrize(
    ("part", "owner", "method", "poke"),
    [
        ("disk", Block, "_serve", "cat /dev/vda >/dev/null; cat /dev/vda >/dev/null"),
        ("vsock", VsockSockets, "_accept", "sleep 60"),
        ("net-socket", SocketNetwork, "_work", "sleep 60"),
        (
            "net-user",
            EventLoop,
            "_wait",
            USE_THE_NETWORK,
        ),
        ("net-user", LazyNetwork, "_look", USE_THE_NETWORK),
        # The second packet waits.
        ("net-limited", LimitAlarm, "_work", USE_THE_NETWORK),
        ("", PortChannels, "_carry", "true"),
    ],
)
def test_a_thread_that_fails_ends_the_machine(
    parts, monkeypatch, tmp_path, part, owner, method, poke
):
    monkeypatch.setattr(owner, method, broken)
    with Machine(image="micro", memory="128M", engine="soft", **parts.get(part, {})) as machine:
        if part == "vsock":
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "vsock"))
        with pytest.raises(GuestError, match=r"the machine failed: .*it is broken"):
            machine.run(poke, timeout=SOON)
        with pytest.raises(BrokenError):
            machine.wait(SOON)


def fails_on(thread, function):
    """Return `function`, which is broken on the threads of that name."""

    def call(*arguments):
        if threading.current_thread().name == thread:
            broken()
        return function(*arguments)

    return call


@pytest.mark.boot
def test_where_no_thread_can_be_had_for_it_those_who_wait_hear_of_the_end(monkeypatch):
    start = ServiceThread.start

    def refused(thread):
        if thread.name == "end":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(ServiceThread, "start", refused)
    with (
        Machine(image="micro", memory="128M", engine="soft") as machine,
        pytest.raises(GuestError, match=r"the guest ended \(poweroff\)"),
    ):
        machine.run("poweroff -f; sleep 60", timeout=SOON)


@pytest.mark.boot
def test_a_copy_that_cannot_end_its_originals_command_ends(monkeypatch):
    with Machine(image="micro", memory="128M", engine="soft") as machine:
        machine.run("true")
        machine.agent.run("sleep 5")
        deadline = time.monotonic() + SOON
        while "sleep 5" not in machine.run("ps", text=True).stdout:
            assert time.monotonic() < deadline
        monkeypatch.setattr(Agent, "_insist", broken)
        (copy,) = machine.fork()
        with copy, pytest.raises(BrokenError):
            copy.start()
            copy.wait(SOON)


def test_a_note_of_the_working_set_that_fails_is_no_fault_of_the_machine(monkeypatch, tmp_path):
    seen = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.set())
    monkeypatch.setattr(workingset, "note", broken)
    monkeypatch.setattr(workingset, "SETTLED", 0)
    control = RunControl()
    workingset.watch(control, None, tmp_path / "note")
    control.entered.set()
    assert seen.wait(SOON)
    assert control.failure is None


@pytest.mark.boot
@pytest.mark.parametrize("fault", [BrokenError, SystemExit])
def test_a_kernel_that_is_not_loaded_is_not_started(monkeypatch, fault):
    """Whatever ends the thread that copies it is raised by who starts the machine."""

    def refuse(*_):
        raise fault("it is broken")

    monkeypatch.setattr(GuestMemory, "fill", refuse)
    with (
        pytest.raises(fault, match="it is broken"),
        Machine(image="micro", memory="128M", engine="soft") as machine,
    ):
        machine.start()


@pytest.mark.boot
def test_an_archive_that_nobody_hears_the_end_of_any_more(monkeypatch, tmp_path):
    """Whoever copies out of a guest is told of a fault on the thread that watches."""
    with Machine(image="micro", memory="128M", engine="soft") as machine:
        machine.run("true")
        monkeypatch.setattr(Command, "wait", fails_on("download", Command.wait))
        with pytest.raises(BrokenError):
            machine.copy_out("/etc/passwd", tmp_path / "passwd")


@pytest.mark.boot
@pytest.mark.parametrize("what", ["typed", "ready"])
def test_input_that_cannot_be_passed_on_ends_the_run(what):
    """`run` ends with the fault, not with a command that has half of its input."""
    break_it = {
        "typed": "Command.write = broken",
        "ready": "Command.backlog = property(broken)",
    }[what]
    program = (
        "import sys\n"
        "from ringzero.vm.guest.command import Command\n"
        "def broken(*_): raise LookupError('it is broken')\n"
        f"{break_it}\n"
        "from ringzero.cli.main import main\n"
        "sys.exit(main(['run', '--engine', 'soft', '--', 'cat']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=b"half", capture_output=True, timeout=SOON
    )
    assert done.returncode == 70
    assert b"LookupError: it is broken" in done.stderr
    assert done.stdout == b""
