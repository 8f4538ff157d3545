"""What people see of steps that take long."""

import io
import threading
import time

import pytest

from ringzero.host import progress
from ringzero.host.progress import QUIET, Progress


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 0.05)
    monkeypatch.setattr(progress, "_REPEAT", 0.05)
    monkeypatch.setattr(progress, "_REDRAW", 0.005)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_log_gets_a_line_again_and_again_though_nobody_updates():
    stream = io.StringIO()
    with Progress(stream).step("compiling") as step:
        step.update(0.4, "12 of 30")
        until(lambda: stream.getvalue().count("\n") >= 3)
    lines = stream.getvalue().splitlines()
    assert all(line.startswith("ringzero: compiling ...  40%  12 of 30") for line in lines)
    assert lines[2].endswith(" s)")


def test_updates_alone_do_not_fill_a_log(monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 60)
    stream = io.StringIO()
    with Progress(stream).step("compiling") as step:
        for number in range(100):
            step.update(number / 100)
    assert stream.getvalue() == ""


def test_terminal_is_drawn_in_place_and_left_clean():
    stream = Terminal()
    with Progress(stream).step("compiling"):
        until(lambda: "compiling" in stream.getvalue())
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_short_steps_and_quiet_ones_show_nothing(monkeypatch, capsys):
    with QUIET.step("quiet"):
        time.sleep(0.1)
    monkeypatch.setattr(progress, "_PATIENCE", 60)
    with Progress().step("short"):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_line_that_cannot_be_drawn_is_no_fault_of_the_step(monkeypatch):
    seen, asked = [], threading.Event()

    def broken(*_):
        asked.set()
        raise LookupError("it is broken")

    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_type))
    monkeypatch.setattr(progress.Step, "show", broken)
    with Progress(io.StringIO()).step("compiling"):
        assert asked.wait(30)
    # The thread is over when it has been asked.
    until(lambda: all(thread.name != "progress" for thread in threading.enumerate()))
    assert not seen
