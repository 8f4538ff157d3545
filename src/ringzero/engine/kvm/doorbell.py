"""Guest writes that arrive as events: one thread serves all of a machine's doorbells."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

from ringzero.host.service import OnFault, ServiceThread


class Doorbells:
    """Event descriptors, each with what to call when the guest rings it.

    The vCPU that rings goes on at once; `ring` is called on this object's thread.
    """

    def __init__(self, on_fault: OnFault | None = None) -> None:
        self.on_fault = on_fault
        self._poll = select.epoll()
        self._rings: dict[int, Callable[[], None]] = {}
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = self._ended = False
        # `settle` asks for a round; the thread answers when it has seen every event before it.
        self._changed = threading.Condition()
        self._asked = self._answered = 0
        self._poll.register(self._stop, select.EPOLLIN)
        self._thread = ServiceThread(self, self._work, "doorbells")
        self._thread.start()

    def add(self, ring: Callable[[], None]) -> int:
        """Return a new descriptor; a write to it leads to a call of `ring`."""
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._rings[fd] = ring
        self._poll.register(fd, select.EPOLLIN)
        return fd

    def settle(self) -> None:
        """Return when every doorbell rung until now has been served."""
        with self._changed:
            self._asked += 1
            mine = self._asked
            os.eventfd_write(self._stop, 1)
            self._changed.wait_for(lambda: self._answered >= mine or self._ended)

    def close(self) -> None:
        """End the thread and give the descriptors back."""
        self._closed = True
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        for fd in (*self._rings, self._stop):
            os.close(fd)
        self._poll.close()

    def _work(self) -> None:
        try:
            self._serve()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _serve(self) -> None:
        while not self._closed:
            asked = self._asked
            stop = False
            for fd, _ in self._poll.poll(maxevents=len(self._rings) + 1):
                try:
                    os.eventfd_read(fd)
                except BlockingIOError:
                    continue
                if fd == self._stop:
                    stop = True
                else:
                    self._rings[fd]()
            if stop:
                with self._changed:
                    self._answered = max(self._answered, asked)
                    if self._asked > self._answered:
                        # Asked for during this round: whatever rang before it is still to see.
                        os.eventfd_write(self._stop, 1)
                    self._changed.notify_all()
