"""The real micro image, booted: kernel, initrd, init and protocol, end to end."""

import os
import threading
import time

import pytest

from ringzero.config.machine import MachineConfig
from ringzero.errors import HostError
from tests.vm.guests import MACHINES, build, missing

pytestmark = [pytest.mark.boot, pytest.mark.peer, pytest.mark.engine]


@pytest.fixture(scope="module", params=MACHINES)
def kind(request):
    reason = missing(request.param)
    if reason:
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="module")
def image():
    from ringzero.image.micro import ensure

    try:
        return ensure()
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")


def config(image, **values):
    return MachineConfig.create(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        memory="256M",
        agent=True,
        name="micro",
        **values,
    )


@pytest.fixture(scope="module")
def guest(kind, image):
    with build(kind, config(image)) as machine:
        assert machine.agent.wait_ready(90), machine.serial_text
        yield machine
        assert machine.agent.faults == 0


def test_one_command(guest):
    status, out, err = guest.run(["uname", "-sr"])
    assert (status, out, err) == (0, f"Linux {guest.agent.release}\n".encode(), b"")


def test_streams_apart_and_status(guest):
    assert guest.run("echo out; echo err >&2; exit 3") == (3, b"out\n", b"err\n")
    assert guest.run("echo x >/dev/stderr; echo y >/dev/stdout") == (0, b"y\n", b"x\n")
    assert guest.run("kill -9 $$")[0] == 137


def test_words_arrive_as_they_are(guest):
    words = ["a b", "c'd", '"', "\n\t\x01", "é\udcff", "$HOME", "*", "\\", ""]
    status, out, _ = guest.run(["printf", "%s|", *words])
    assert status == 0
    assert out == "".join(word + "|" for word in words).encode("utf-8", "surrogateescape")


def test_unknown_command(guest):
    status, out, err = guest.run(["no-such-command"])
    assert (status, out) == (127, b"")
    assert b"not found" in err


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 70_000, 3_000_000])
def test_bytes_in_and_out(guest, size):
    data = os.urandom(size)
    assert guest.run(["cat"], data) == (0, data, b"")


def test_much_output_at_once(guest):
    status, out, err = guest.run("head -c 2000000 /dev/zero; head -c 2000000 /dev/zero >&2")
    assert (status, len(out), len(err)) == (0, 2_000_000, 2_000_000)


def test_input_that_is_not_read_is_gone_afterwards(guest):
    assert guest.run(["true"], b"left over\nwithout an end" * 5000)[0] == 0
    assert guest.run(["cat"], b"fresh") == (0, b"fresh", b"")


def test_no_input_is_an_end_of_file(guest):
    assert guest.run(["cat"]) == (0, b"", b"")


def test_what_a_command_leaves_behind_keeps_nobody_waiting(guest):
    began = time.monotonic()
    assert guest.run("sleep 300 & echo done") == (0, b"done\n", b"")
    assert time.monotonic() - began < 60


def test_signal(guest):
    started = threading.Event()
    command = guest.agent.run("echo on; sleep 100", on_stdout=lambda _: started.set())
    assert started.wait(30)
    command.signal("TERM")
    assert command.wait(30) == 143


def test_interrupt_is_not_ignored(guest):
    started = threading.Event()
    script = "trap 'exit 9' INT; echo on; while :; do sleep 0.1; done"
    command = guest.agent.run(script, on_stdout=lambda _: started.set())
    assert started.wait(30)
    command.signal("INT")
    assert command.wait(30) == 9


def test_terminal_has_a_size_and_a_name(guest):
    before = len(guest.console_data)
    command = guest.agent.terminal("stty size; tty; exit 6", rows=33, columns=101)
    assert command.wait(30) == 6
    expected = b"33 101\r\n/dev/hvc0\r\n"
    deadline = time.monotonic() + 10
    while expected not in bytes(guest.console_data[before:]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert expected in bytes(guest.console_data[before:])


def test_environment(guest):
    status, out, _ = guest.run("hostname; echo $HOME; id -u; test -c /dev/hwrng; ls -d /proc/1")
    assert (status, out.split()) == (0, [b"micro", b"/root", b"0", b"/proc/1"])


def test_no_warning_from_the_kernel(guest):
    out = guest.run("dmesg -r")[1].decode(errors="replace")
    levels = [line for line in out.splitlines() if line[:3] in ("<0>", "<1>", "<2>", "<4>")]
    assert not [line for line in levels if "WARNING" in line or "BUG" in line], levels


def test_disks_and_power_off(kind, image, tmp_path):
    writable, fixed = tmp_path / "disk", tmp_path / "fixed"
    writable.write_bytes(bytes(1 << 20))
    fixed.write_bytes(b"fixed" + bytes((1 << 20) - 5))
    disks = [f"{writable},format=raw", f"{fixed},ro"]
    with build(kind, config(image, disks=disks)) as machine:
        assert machine.run("printf hello >/dev/vda; head -c 5 /dev/vdb") == (0, b"fixed", b"")
        status, _, err = machine.run("echo x >/dev/vdb")
        assert status != 0
        assert err
        machine.agent.poweroff()
        assert machine.wait(30).reason.value == "poweroff"
    # A clone's disk is its own, and gone with it.
    own = kind in ("forked", "snapshotted")
    assert writable.read_bytes()[:5] == (bytes(5) if own else b"hello")
