"""The guest's identity program, run on the host with records that change nothing there."""

import os
import shutil
import struct
import subprocess

import pytest

from ringzero.image.guest import identity as program
from ringzero.image.guest.identity_record import (
    ANSWER,
    COUNTER_OFFSET,
    RECORD_SIZE,
    TIME_OFFSET,
)
from ringzero.vm.guest.identity import Identity

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="an x86-64 program")


@pytest.fixture
def path(tmp_path):
    place = tmp_path / "identity"
    place.write_bytes(program.build())
    place.chmod(0o755)
    return place


def harmless():
    """A record whose parts the kernel refuses: no name, no time; the random device is a pipe."""
    return Identity().record()


def test_every_record_is_answered_and_the_end_ends_it(path):
    result = subprocess.run([path], input=harmless() * 3, capture_output=True, timeout=10)
    assert (result.returncode, result.stdout) == (1, ANSWER * 3)


def test_half_a_record_ends_it(path):
    result = subprocess.run([path], input=harmless()[:100], capture_output=True, timeout=10)
    assert (result.returncode, result.stdout) == (1, b"")


def test_system_calls_and_their_arguments(path):
    """What the kernel sees, told by strace where there is one."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    record = harmless()
    result = subprocess.run(
        ["strace", "-o", path.parent / "trace", path], input=record, capture_output=True, timeout=20
    )
    assert result.stdout == ANSWER
    names = [line.partition("(")[0] for line in (path.parent / "trace").read_text().splitlines()]
    assert names[:-1] == ["execve", "read", "ioctl", "ioctl", "sethostname",
                          "socket", *["ioctl"] * 8, "close", "write", "read", "exit"]  # fmt: skip


# What stands for clock_settime here: to get this process's number does nothing.
GETPID = 39


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """A program that does with a record what sets the clock, but for that call, and prints it."""
    monkeypatch.setattr(program, "CLOCK_SETTIME", GETPID)
    calls = (
        program.Call(program.READ, (0, program.RECORD, RECORD_SIZE), result=RECORD_SIZE),
        program._set_clock(),
        program.Call(program.WRITE, (1, program.RECORD, RECORD_SIZE), result=RECORD_SIZE),
    )
    place = tmp_path / "clock"
    place.write_bytes(program.executable(calls, b""))
    place.chmod(0o755)
    return place


def times(record):
    """Return nanoseconds and the counter of a record."""
    seconds, nanoseconds = struct.unpack_from("<qq", record, TIME_OFFSET)
    return seconds * 10**9 + nanoseconds, struct.unpack_from("<Q", record, COUNTER_OFFSET)[0]


def test_the_clock_is_moved_on_by_the_counter(clock):
    hertz, then = 1_700_000_000, 1_790_000_000_987_654_321
    record = Identity().record(then, (), (0, hertz))
    told = subprocess.run([clock], input=record, capture_output=True, timeout=10).stdout
    now, counter = times(told)
    assert counter > 0
    # The tick in the record has 32 bits behind the point.
    assert now - then == pytest.approx(counter * 10**9 / hertz, rel=1e-8)
    assert (now - then) // 10**9 > 0


@pytest.mark.parametrize("moment", [None, 1_790_000_000_000_000_000])
def test_a_counter_that_stands_before_the_records_moves_nothing(clock, moment):
    record = Identity().record(moment, (), ((1 << 64) - 1, 10**9))
    told = subprocess.run([clock], input=record, capture_output=True, timeout=10).stdout
    assert told == record


@pytest.mark.parametrize(("delay", "often"), [(0, 1), (20_000, 8)])
def test_a_clock_that_was_set_late_is_set_again(clock, tmp_path, delay, often):
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    # By a counter of a million ticks in a nanosecond: what strace itself costs takes no time.
    hertz = 10**9 if delay else 10**15
    record = Identity().record(1_790_000_000_000_000_000, (), (0, hertz))
    slow = ["-e", f"inject=getpid:delay_exit={delay}"] if delay else []
    command = ["strace", *slow, "-o", tmp_path / "trace", clock]
    subprocess.run(command, input=record, capture_output=True, timeout=60)
    assert (tmp_path / "trace").read_text().count("getpid") == often


def test_record_fits_the_guests_buffers():
    assert len(Identity("a").record()) == RECORD_SIZE
    assert 4096 % RECORD_SIZE == 0
