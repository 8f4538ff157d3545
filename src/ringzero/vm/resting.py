"""Copies whose guests have done nothing for a while: one thread settles them all.

A fresh copy's guest has written to pages, a third of which hold again what they held. A machine
has to stand still for a millisecond for them to be found, and cannot see to that on a thread of a
vCPU's own.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

# After a vCPU said that it rests, in seconds: until then it sleeps again. And between two machines,
# so that many which rest at once leave time for others.
_DELAY, _PAUSE = 0.05, 0.002
# The thread ends when nothing came for so many seconds.
_PATIENCE = 10.0


class Resting(Protocol):
    """A machine of which a vCPU rests."""

    def settle(self) -> None:
        """Give back what memory can be given back, if the machine still sleeps; raise nothing."""


# Returns a machine, or None when it is gone: a weak reference.
Find = Callable[[], Resting | None]


class _Settler:
    """The machines that are due, and the thread that sees to them, which ends for want of any."""

    def __init__(self) -> None:
        self._due: queue.Queue[Find] = queue.Queue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, machine: Find) -> None:
        with self._lock:
            self._due.put(machine)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="settle", daemon=True)
                self._thread.start()

    def _next(self) -> Find | None:
        """Return the next one; None when the thread is to end, which others know then."""
        with contextlib.suppress(queue.Empty):
            return self._due.get(timeout=_PATIENCE)
        with self._lock:
            if self._due.empty():
                self._thread = None
                return None
            return self._due.get()

    def _work(self) -> None:
        while (machine := self._next()) is not None:
            time.sleep(_PAUSE if not self._due.empty() else _DELAY)
            found = machine()
            if found is not None:
                found.settle()
            del found


_settler = _Settler()


def _renew() -> None:
    """Begin anew in a forked process, which has no such thread."""
    global _settler
    _settler = _Settler()


os.register_at_fork(after_in_child=_renew)


def settle_soon(machine: Find) -> None:
    """Have a machine settled on a thread that is not its own, if there still is one by then."""
    _settler.add(machine)
