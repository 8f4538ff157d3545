"""Signals that end the command line: noted at once, acted on where it is safe.

A handler sets a flag and wakes who waits in a `Loop`. Where none waits, it raises SystemExit,
so that every `finally` runs. The flag makes the exit code right even where the exception was
swallowed on its way, as Python does in destructors and callbacks.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Self

ENDING = (signal.SIGTERM, signal.SIGHUP)

_noted = 0
_loops: list[Loop] = []


def install() -> None:
    """Take the signals of this process that end it."""
    for number in ENDING:
        signal.signal(number, _handle)


def code() -> int:
    """Return the exit code that a signal asked for, or 0."""
    return 128 + _noted if _noted else 0


class Loop:
    """Where a main thread waits for several things at once.

    `wake` may be called from any thread. Within the block, Ctrl-C and the signals that end us
    wake it, too, and `wait` raises what they mean.
    """

    def __init__(self) -> None:
        # Its `put` may interrupt itself, as handlers of signals do.
        self._calls: SimpleQueue[None] = SimpleQueue()
        self._interrupted = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
            _loops.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self in _loops:
            _loops.remove(self)
            signal.signal(signal.SIGINT, self._before)

    def wake(self, *_: object) -> None:
        """Have the one who waits look again."""
        self._calls.put(None)

    def wait(self, timeout: float | None) -> None:
        """Wait up to `timeout` seconds for a `wake`. Raises KeyboardInterrupt, SystemExit."""
        self.check()
        with contextlib.suppress(Empty):
            self._calls.get(timeout=None if timeout is None else max(0.0, timeout))
        self.check()

    def check(self) -> None:
        """Raise what a signal meant that has come."""
        if _noted:
            raise SystemExit(128 + _noted)
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def _interrupt(self, *_: object) -> None:
        self._interrupted = True
        self.wake()


def _handle(number: int, _: FrameType | None) -> None:
    global _noted
    _noted = number
    if not _loops:
        raise SystemExit(128 + number)
    _loops[-1].wake()
