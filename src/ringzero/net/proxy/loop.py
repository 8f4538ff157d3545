"""One thread that waits for sockets and for time, and does everything itself."""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ringzero.host.service import OnFault, ServiceThread

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
# What the host says when it has no socket left to give, of this process or of all.
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# When it is asked again, in seconds.
BREATH = 0.1
GONE = select.EPOLLERR | select.EPOLLHUP
# How long `close` waits for the thread, in seconds.
_PATIENCE = 5.0


class HasDescriptor(Protocol):
    """A socket, or what has a descriptor like one."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...


class Timer:
    """A call at a moment; `cancel` takes it back."""

    __slots__ = ("call", "moment")

    def __init__(self, moment: float, call: Callable[[], None]) -> None:
        self.moment = moment
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Do not call."""
        self.call = None


class EventLoop:
    """The thread. All methods are its own, but `wake`, `call`, `start`, `close` and `leave`.

    Each round begins with `before`, which is told the time; then descriptors and timers have
    their turn, and then `after`. It returns when it is to be called again at the latest, in
    seconds of `now`, or None; what is past means at once.

    Who wants `after` called at once, and would have to wait for the thread to wake, lends its
    own (`take_turn`): nothing but the wait for descriptors goes on at the same time.
    """

    def __init__(
        self, name: str, before: Callable[[float], None], after: Callable[[], float | None]
    ) -> None:
        self._before, self._after = before, after
        self._poll = select.epoll()
        self._signal = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._signal, READ)
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._calls: deque[Callable[[], None]] = deque()
        self._woken = self._sleeping = self._closing = False
        self._left = False
        # Held by whoever works; and until when the thread waits.
        self._turn = threading.Lock()
        self._until: float | None = None
        self.now = time.monotonic()
        self.on_fault: OnFault | None = None
        self._thread = ServiceThread(self, self._work, name)

    # ---- from any thread --------------------------------------------------

    def wake(self) -> None:
        """Have another round."""
        self._woken = True
        if self._sleeping and not self._closing:
            self._sleeping = False
            os.eventfd_write(self._signal, 1)

    def take_turn(self) -> bool:
        """Have `before` and `after` called on this thread; False where the loop's own works.

        That one will do so at its next round, if it is told by `wake`.
        """
        if self._closing or not self._turn.acquire(blocking=False):
            return False
        try:
            self.now = time.monotonic()
            self._before(self.now)
            until = self._earliest(self._after())
            later = self._until is None or (until is not None and until < self._until)
        finally:
            self._turn.release()
        if until is not None and later:
            self.wake()
        return True

    def is_own_thread(self) -> bool:
        """Return whether the caller is the loop's thread."""
        return threading.current_thread() is self._thread

    def call(self, call: Callable[[], None]) -> None:
        """Have the thread call this soon."""
        self._calls.append(call)
        self.wake()

    def start(self) -> None:
        """Begin. What was to be called before that is, with what is due then, when this returns."""
        if self._calls:
            with self._turn:
                self._do_round([])
        self._thread.start()

    def close(self) -> None:
        """End the thread; descriptors that were watched stay their owners'."""
        if self._left:
            return
        self._closing = True
        if self._thread.ident:
            os.eventfd_write(self._signal, 1)
            if threading.current_thread() is not self._thread:
                self._thread.join(_PATIENCE)
        self.leave()

    def leave(self) -> None:
        """In a forked process, which has no such thread: let go.

        The original's epoll instance is the same: what it watches is left as it is.
        """
        if not self._left:
            self._left = self._closing = True
            self._poll.close()
            os.close(self._signal)

    # ---- descriptors and time ---------------------------------------------

    def watch(self, what: HasDescriptor, events: int, call: Callable[[int], None]) -> None:
        """Call `call` with what happened, of `events` and `GONE`."""
        descriptor = what.fileno()
        self._poll.register(descriptor, events)
        self._callbacks[descriptor] = call

    def change(self, what: HasDescriptor, events: int) -> None:
        """Watch for other events."""
        self._poll.modify(what.fileno(), events)

    def forget(self, what: HasDescriptor) -> None:
        """Watch no longer; to be called before the descriptor is closed."""
        descriptor = what.fileno()
        if self._callbacks.pop(descriptor, None) is not None and not self._left:
            self._poll.unregister(descriptor)

    def at(self, moment: float, call: Callable[[], None]) -> Timer:
        """Call `call` once, when it is `moment`."""
        timer = Timer(moment, call)
        heapq.heappush(self._timers, (moment, next(self._order), timer))
        return timer

    # ---- the thread -------------------------------------------------------

    def _work(self) -> None:
        self._turn.acquire()
        while not self._closing:
            self._do_round(self._wait())
        self._turn.release()

    def _do_round(self, events: list[tuple[int, int]]) -> None:
        self.now = time.monotonic()
        self._before(self.now)
        for descriptor, happened in events:
            call = self._callbacks.get(descriptor)
            if call is not None:
                call(happened)
            elif descriptor == self._signal:
                os.eventfd_read(self._signal)
        for _ in range(len(self._calls)):
            self._calls.popleft()()
        while self._timers and self._timers[0][0] <= self.now:
            timer = heapq.heappop(self._timers)[2]
            if timer.call is not None:
                timer.call()
        self._until = self._earliest(self._after())

    def _earliest(self, moment: float | None) -> float | None:
        """Return when there is something to do, by the timers or at `moment`."""
        if self._timers:
            first = self._timers[0][0]
            return first if moment is None else min(first, moment)
        return moment

    def _wait(self) -> list[tuple[int, int]]:
        until = self._until
        timeout = max(0.0, until - time.monotonic()) if until is not None else -1.0
        if timeout:
            self._sleeping = True
        self._turn.release()
        # Whoever wakes from here on writes to the descriptor.
        events = self._poll.poll(0.0 if self._woken else timeout)
        self._sleeping = self._woken = False
        self._turn.acquire()
        return events
