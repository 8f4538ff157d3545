"""What a port needs that has something to do later, when no frame comes: one thread, if ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ringzero.host.service import OnFault, ServiceThread
from ringzero.net.contract import Port

# How long `close` waits for the thread, in seconds.
_PATIENCE = 5.0


class AlarmedPort:
    """A port (`ringzero.net.contract.Port`) before another, with an alarm.

    `wake` is the network's, which then fetches again.
    """

    def __init__(self, port: Port, wake: Callable[[], None]) -> None:
        self._port, self._wake = port, wake
        # Hears of an exception that ends the thread.
        self.on_fault: OnFault | None = None
        self._alarm = Alarm(wake, self._failed)
        self.set_link, self.settle = port.set_link, port.settle

    def _failed(self, fault: BaseException) -> None:
        if self.on_fault is None:
            raise fault
        self.on_fault(fault)

    def close(self) -> None:
        """Give the thread back, if there is one."""
        self._alarm.close()

    def leave(self) -> None:
        """In a forked process, which has no such thread."""
        self._alarm = Alarm(self._wake, self._failed)


class Alarm:
    """Calls once after a while; a thread that exists from the first time on."""

    def __init__(self, call: Callable[[], None], on_fault: OnFault) -> None:
        self.on_fault: OnFault | None = on_fault
        self._call = call
        self._changed = threading.Condition()
        self._moment: float | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    def set(self, wait: float) -> None:
        """Call in `wait` seconds, or when it is earlier due."""
        with self._changed:
            moment = time.monotonic() + wait
            if self._moment is None or moment < self._moment:
                self._moment = moment
                self._changed.notify()
            if self._thread is None and not self._closing:
                self._thread = ServiceThread(self, self._work, "rate")
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closing:
                    now = time.monotonic()
                    if self._moment is not None and self._moment <= now:
                        break
                    self._changed.wait(None if self._moment is None else self._moment - now)
                if self._closing:
                    return
                self._moment = None
            self._call()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)
