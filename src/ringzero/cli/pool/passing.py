"""A command line on its way to a machine that is ready: signals follow it, its exit code returns.

The other side is `ringzero.cli.pool.worker`, what is said is in `ringzero.cli.pool.protocol`.
"""

import os
import sys

# The C halves of `select`, `signal` and `socket`: those of Python take longer than the command.
from _signal import (  # type: ignore[import-not-found]  # isort: skip
    SIGHUP,
    SIGINT,
    SIGTERM,
    set_wakeup_fd,
    signal,
)
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_SEQPACKET, SOL_SOCKET, socket
from select import POLLIN, poll

from ringzero.cli.pool import protocol
from ringzero.cli.pool.protocol import ACCEPTED, CODE, GREETING, LINE, MACHINES, MESSAGE, SIGNAL
from ringzero.cli.stdin import can_read_stdin

_ENDING = (SIGINT, SIGTERM, SIGHUP)


def run(pools: list[str], words: list[str]) -> int | None:
    """Run the command line `words` in a machine of one of the pools, in these directories.

    Returns its exit code, None where there is none at hand. What goes wrong is told.
    """
    for directory in pools:
        link = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        try:
            if _greeted(link, f"{directory}/{MACHINES}") and _asked(link, words):
                code = _await(link)
                return code if code is not None else _lost(words)
        except OSError:
            # The pool has ended, or all of its machines are at work.
            continue
        finally:
            link.close()
    return None


def _greeted(link: socket, path: str) -> bool:
    """Whether a machine of this user's is at the other end. Raises OSError."""
    link.settimeout(protocol.PATIENCE)
    link.connect(path)
    if not protocol.is_ours(link) or link.recv(MESSAGE) != GREETING:
        return False
    link.settimeout(None)
    return True


def _asked(link: socket, words: list[str]) -> bool:
    """Send the command line; whether the machine takes it. Raises OSError."""
    request = os.memfd_create("request", os.MFD_CLOEXEC)
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        os.write(request, protocol.pack(words, takes_input=can_read_stdin()))
        numbers = b"".join(n.to_bytes(4, sys.byteorder) for n in (request, 0, 1, 2, here))
        link.sendmsg([LINE], [(SOL_SOCKET, SCM_RIGHTS, numbers)])
    finally:
        os.close(request)
        os.close(here)
    return link.recv(MESSAGE) == ACCEPTED


def _await(link: socket) -> int | None:
    """Return the exit code; signals that would end this process go to the machine's.

    None where the machine's process ended before the command did.
    """
    # What comes just before a wait is in the pipe, and ends it.
    heard, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in _ENDING:
        signal(number, _ignore)
    poller = poll()
    poller.register(link, POLLIN)
    poller.register(heard, POLLIN)
    ending = 0
    while True:
        limit = protocol.END * 1000 if ending else None
        woken = [descriptor for descriptor, _ in poller.poll(limit)]
        if link.fileno() in woken:
            return protocol.number_of(_answer(link), CODE)
        if not woken:
            return 128 + ending
        for number in os.read(heard, 64):
            ending = number
            _tell(link, number)


def _lost(words: list[str]) -> int:
    from ringzero.cli.main import failed
    from ringzero.errors import ControlError

    return failed(ControlError(protocol.LOST, hint=protocol.LOST_HINT), words)


def _answer(link: socket) -> bytes:
    try:
        return link.recv(MESSAGE)
    except OSError:
        return b""


def _tell(link: socket, number: int) -> None:
    try:
        link.send(SIGNAL + b" %d" % number)
    except OSError:
        # It has ended; its answer is on its way.
        return


def _ignore(*_: object) -> None:
    """Its number is in the pipe."""
