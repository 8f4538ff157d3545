"""A memory balloon, and who asks its guest how memory is used."""

from __future__ import annotations

import threading

from ringzero.config.devices.balloon import BalloonConfig
from ringzero.devices.virtio.kinds.balloon import PAGE, Balloon
from ringzero.host.service import OnFault, ServiceThread
from ringzero.vm.ends.backend import BACKENDS, Backend

# How long `close` waits for the thread, in seconds.
_PATIENCE = 5.0


@BACKENDS.register("balloon")
class BalloonBackend(Backend):
    """The balloon of a description; a thread asks for statistics where it has them."""

    def __init__(self, config: BalloonConfig, name: str, content: object) -> None:
        self.config = config
        self.device = self.balloon = Balloon(
            config.size // PAGE,
            deflate_on_oom=config.deflate_on_oom,
            statistics=config.statistics > 0,
            hinting=config.hinting,
            reporting=config.reporting,
        )
        self.on_fault: OnFault | None = None
        self._interval = config.statistics
        self._changed = threading.Condition()
        self._closing = False
        self._thread: ServiceThread | None = None

    def start(self, on_fault: OnFault) -> None:
        super().start(on_fault)
        self.on_fault = on_fault
        if self._interval:
            self._thread = ServiceThread(self, self._ask, "balloon")
            self._thread.start()

    def _ask(self) -> None:
        while True:
            self.balloon.ask_statistics()
            with self._changed:
                self._changed.wait(self._interval)
                if self._closing:
                    return

    def poll_every(self, seconds: int) -> None:
        """Ask that often from now on, the next time at once."""
        with self._changed:
            self._interval = seconds
            self._changed.notify()

    def leave(self) -> None:
        self._thread = None

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_PATIENCE)
