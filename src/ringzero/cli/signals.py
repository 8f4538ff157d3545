"""Signals that end the command line: noted at once, acted on where it is safe.

A handler sets a flag and wakes who waits in a `Loop`. Where none waits, it raises SystemExit (for
Ctrl-C, KeyboardInterrupt), so that every `finally` runs. Two ways in which Python loses a signal
are closed here. One that comes just before the main thread begins to wait does not interrupt it:
a thread of ours hears of every signal from the kernel's side (`signal.set_wakeup_fd`) and sends
it again. Exceptions in destructors and callbacks, such as that of a module's lock, are swallowed:
then the signal is sent again, too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# When a signal that did nothing yet comes again, in seconds.
_AGAIN = 0.01

_noted = 0
_loops: list[Loop] = []
# Who takes signals instead, the last first: their numbers, and what is called.
_takers: list[tuple[frozenset[int], Callable[[int], object]]] = []
_watched: list[threading.Thread] = []


def install() -> None:
    """Take the signals that end this process; it is ours."""
    for number in _ENDING:
        signal.signal(number, _handle)
    sys.unraisablehook = _swallowed
    _watch()


@contextlib.contextmanager
def taken(numbers: Iterable[int], take: Callable[[int], object]) -> Iterator[None]:
    """Have `take` called with each of these signals, on a thread, instead of what they mean.

    On a thread: what it locks may be locked by whom a handler would interrupt. A signal is the
    main thread's; within any other nothing is taken.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch()
    entry = frozenset(numbers), take
    # It is there before the handlers go, and until they are back: a signal between the two would
    # be nobody's.
    _takers.append(entry)
    before = {number: signal.signal(number, _ignore) for number in entry[0]}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _takers.remove(entry)


def code() -> int:
    """Return the exit code that a signal asked for, or 0."""
    return 128 + _noted if _noted else 0


class Loop:
    """Where a main thread waits for several things at once.

    `wake` may be called from any thread. Within the block, Ctrl-C and the signals that end us
    wake it, too, and `wait` raises what they mean.
    """

    def __init__(self) -> None:
        # Free when somebody called. A handler of a signal may free it wherever it interrupts,
        # itself included.
        self._called = threading.Lock()
        self._called.acquire()
        self._interrupted = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            _loops.append(self)
            if signal.getsignal(signal.SIGINT) is not _handle:
                # The process is somebody else's; its Ctrl-C is ours for the block.
                self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self in _loops:
            _loops.remove(self)
            if self._before is not None:
                signal.signal(signal.SIGINT, self._before)
        if kind is None:
            self.check()

    def wake(self, *_: object) -> None:
        """Have the one who waits look again."""
        # It is free already: one call is as good as two.
        with contextlib.suppress(RuntimeError):
            self._called.release()

    def wait(self, timeout: float | None) -> None:
        """Wait up to `timeout` seconds for a `wake`. Raises KeyboardInterrupt, SystemExit."""
        self.check()
        self._called.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        self.check()

    def check(self) -> None:
        """Raise what a signal meant that has come."""
        if _noted:
            raise _meaning(_noted)
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def _interrupt(self, *_: object) -> None:
        self._interrupted = True
        self.wake()


def _watch() -> None:
    """Begin to hear of every signal on a thread; on the main thread."""
    if _watched:
        return
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(reading,), name="signals", daemon=True)
    _watched.append(thread)
    thread.start()


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Have no thread of ours for the block, of what the process must do while it has one only."""
    if not _watched:
        yield
        return
    os.close(signal.set_wakeup_fd(-1))
    _watched.pop().join()
    try:
        yield
    finally:
        _watch()


def _listen(descriptor: int) -> None:
    while numbers := os.read(descriptor, 64):
        for number in numbers:
            take = next((take for wanted, take in _takers[::-1] if number in wanted), None)
            if take is not None:
                # Whatever becomes of one, the next is heard.
                with contextlib.suppress(Exception):
                    take(number)
            elif number in _ENDING:
                for loop in _loops:
                    loop.wake()
                _insist(number)
    os.close(descriptor)


def _insist(number: int) -> None:
    """Send a signal to the main thread until it has taken note of it."""
    main = threading.main_thread()
    while not _noted and signal.getsignal(number) is _handle and main.ident is not None:
        time.sleep(_AGAIN)
        if not _noted:
            signal.pthread_kill(main.ident, number)


def _ignore(*_: object) -> None:
    """Whoever takes the signal hears of it on another thread."""


def _handle(number: int, _: FrameType | None) -> None:
    global _noted
    _noted = number
    if not _loops:
        raise _meaning(number)
    _loops[-1].wake()


def _meaning(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _swallowed(what: UnraisableHookArgs) -> None:
    """Hear of an exception that nobody got: a signal's comes again, without a word."""
    if not (_noted and what.exc_type in (SystemExit, KeyboardInterrupt)):
        sys.__unraisablehook__(what)
        return
    again = threading.Timer(_AGAIN, os.kill, (os.getpid(), _noted))
    again.daemon = True
    again.start()
