"""A thread that rings once at a set time, for APIC timers that are not in the kernel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ringzero.host.service import OnFault, ServiceThread


class Alarm:
    """Calls `ring` on its own thread when the time last given to `set` has come."""

    def __init__(self, ring: Callable[[], None], on_fault: OnFault | None = None) -> None:
        self.on_fault = on_fault
        self._ring = ring
        self._changed = threading.Condition()
        self._due: float | None = None
        self._closed = False
        ServiceThread(self, self._work, "vcpu-alarm").start()

    def set(self, seconds: float) -> None:
        """Ring in `seconds` from now, instead of what was set before."""
        with self._changed:
            self._due = time.monotonic() + seconds
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _work(self) -> None:
        with self._changed:
            while not self._closed:
                left = None if self._due is None else self._due - time.monotonic()
                if left is not None and left <= 0:
                    self._due = None
                    # Without the lock: `ring` takes locks of its own.
                    self._changed.release()
                    try:
                        self._ring()
                    finally:
                        self._changed.acquire()
                else:
                    self._changed.wait(left)
