"""Limits of the host are named, whichever operation they befall."""

import errno
import os

import pytest

from ringzero.cli.main import main
from ringzero.host.exhausted import host_limit


def refused(number, name=None):
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (refused(errno.EMFILE, "/x/y.py"), "too many open files: the limit here is"),
        (refused(errno.ENFILE), "no descriptors left"),
        (refused(errno.ENOMEM), "no memory left"),
        (refused(errno.EAGAIN), "no more processes"),
        (refused(errno.ENOSPC, "/x"), "no room on the disk (/x)"),
        (refused(errno.EDQUOT), "no room"),
        (refused(errno.EFBIG), "limit of file sizes"),
        (MemoryError(), "no memory left"),
        (RuntimeError("can't start new thread"), "no more threads"),
    ],
)
def test_limit_is_named(fault, words):
    error = host_limit(fault)
    assert words in error.message and error.hint


def test_other_faults_are_no_limits():
    assert host_limit(refused(errno.ENOENT)) is None
    assert host_limit(RuntimeError("something else")) is None
    assert host_limit(KeyError("x")) is None


def test_command_line_tells_it(monkeypatch, capsys):
    def fail(*_):
        raise refused(errno.EMFILE)

    monkeypatch.setattr("ringzero.cli.main._run", fail)
    assert main(["ps"]) == 4
    assert "ulimit -n" in capsys.readouterr().err
