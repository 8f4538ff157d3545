import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.host import terminal
from ringzero.host.terminal import EscapeFilter, Reader

SOURCE = str(Path(terminal.__file__).parents[2])


@pytest.fixture
def screen():
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def test_raw_mode_and_back(screen):
    _, slave = screen
    before = termios.tcgetattr(slave)
    with pytest.raises(ValueError, match="inside"), terminal.raw_mode(slave):
        inside = termios.tcgetattr(slave)
        assert not inside[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
        raise ValueError("inside")
    assert termios.tcgetattr(slave) == before


def test_what_is_no_terminal_is_left_alone(tmp_path):
    with (tmp_path / "x").open("wb") as file, terminal.raw_mode(file.fileno()):
        pass


PROGRAM = """
import os, sys, time
from ringzero.host.terminal import raw_mode
with raw_mode(0):
    os.write(1, b"raw")
    {action}
"""


@pytest.mark.parametrize(
    ("action", "number"),
    [
        ("time.sleep(60)", signal.SIGTERM),
        ("time.sleep(60)", signal.SIGHUP),
        ("time.sleep(60)", signal.SIGQUIT),
        ("time.sleep(60)", signal.SIGINT),
        ("1 / 0", None),
        ("sys.exit(3)", None),
        ("raise KeyboardInterrupt", None),
    ],
)
def test_restored_on_every_way_out(screen, action, number):
    _master, slave = screen
    before = termios.tcgetattr(slave)
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(action=action)],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": SOURCE},
        # Background jobs of a shell ignore SIGINT, those of nohup SIGHUP, and so would their
        # children.
        preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, number) if n],
    )
    assert child.stdout.read(3) == b"raw"
    if number is not None:
        assert termios.tcgetattr(slave) != before
        child.send_signal(number)
    code = child.wait(20)
    child.stdout.close()
    assert termios.tcgetattr(slave) == before
    if number is not None:
        assert code == -number


def test_size(screen):
    _master, slave = screen
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    assert terminal.size(slave) == (33, 101)


def test_size_of_what_is_no_terminal(monkeypatch):
    monkeypatch.delenv("LINES", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    rows, columns = terminal.size(-1)
    assert rows > 0
    assert columns > 0


@pytest.mark.parametrize(
    ("chunks", "out", "ended"),
    [
        ([b"ls\r"], b"ls\r", False),
        ([b"a\x1d", b"qb"], b"a", True),
        ([b"\x1d\x1d"], b"\x1d", False),
        ([b"\x1dxy"], b"y", False),
        ([b"\x03\x1a\x04"], b"\x03\x1a\x04", False),
    ],
)
def test_escape_key(chunks, out, ended):
    escape = EscapeFilter()
    assert b"".join(map(escape.feed, chunks)) == out
    assert escape.ended is ended


@given(st.binary(max_size=30), st.integers(0, 30))
def test_escape_key_does_not_care_for_chunks(data, cut):
    whole, parts = EscapeFilter(), EscapeFilter()
    expected = whole.feed(data)
    first = parts.feed(data[:cut])
    if not parts.ended:
        first += parts.feed(data[cut:])
    assert (first, parts.ended) == (expected, whole.ended)


def test_reader_passes_on_and_ends():
    reader, writer = os.pipe()
    got, ended = bytearray(), threading.Event()
    with Reader(reader, got.extend, ended.set):
        os.write(writer, b"abc")
        os.close(writer)
        assert ended.wait(10)
    assert got == b"abc"
    os.close(reader)


def test_reader_waits_for_a_slow_consumer():
    reader, writer = os.pipe()
    got, ready = bytearray(), threading.Event()
    with Reader(reader, got.extend, lambda: None, ready.is_set) as held:
        os.write(writer, b"abc")
        time.sleep(0.1)
        assert got == b""
        ready.set()
        held.proceed()
        deadline = time.monotonic() + 10
        while not got and time.monotonic() < deadline:
            time.sleep(0.005)
    assert got == b"abc"
    os.close(reader)
    os.close(writer)


def test_reader_is_stopped_while_it_waits():
    reader, writer = os.pipe()
    began, ended = time.monotonic(), threading.Event()
    with Reader(reader, lambda _: None, ended.set):
        time.sleep(0.05)
    assert time.monotonic() - began < 1
    assert not ended.is_set()
    os.close(reader)
    os.close(writer)


def test_a_fault_of_who_takes_it_ends_the_reader_and_is_raised():
    reader, writer = os.pipe()
    ended, told = threading.Event(), threading.Event()

    def broken(_):
        raise LookupError("it is broken")

    with (
        pytest.raises(LookupError, match="it is broken"),
        Reader(reader, broken, ended.set, broken=told.set),
    ):
        os.write(writer, b"abc")
        assert told.wait(10)
    assert not ended.is_set(), "half of the input is not all of it"
    os.close(reader)
    os.close(writer)
