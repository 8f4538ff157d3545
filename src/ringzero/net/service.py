"""A port with a server of the host's own before it: what is for that does not reach the network."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence

from ringzero.core.frames import Frame
from ringzero.net.alarm import AlarmedPort
from ringzero.net.contract import Port
from ringzero.net.stack.localservice import LocalService, Respond

# Frames for the guest that wait for room in its interface; TCP sends others again.
_MOST_WAITING = 256
# Timers' shortest wait, in seconds.
_SHORTEST = 0.001


class ServicePort(AlarmedPort):
    """A port (`ringzero.net.contract.Port`) with a server at `address` and `mac` before it.

    `wake` is the network's, which then fetches. The server works on the thread that does.
    """

    def __init__(
        self,
        port: Port,
        wake: Callable[[], None],
        address: bytes,
        mac: bytes,
        respond: Respond,
        *,
        mtu: int = 1500,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(port, wake)
        self._clock = clock
        self._waiting: deque[Frame] = deque()
        self._service = LocalService(address, mac, respond, self._emit, _number, mtu)
        self.deliver: Callable[[Sequence[Frame]], int] = port.deliver

    def fetch(self, handle: Callable[[Frame], None], limit: int, *, coalesce: bool = False) -> bool:
        """As `Port.fetch`, but for frames that are for the server."""
        service = self._service
        now = self._clock()
        due = service.deadline()
        if due is not None and due <= now:
            service.expire(now)
        taken = False

        def sift(frame: Frame) -> None:
            nonlocal taken
            if service.wants(frame.head):
                taken = True
                service.receive(frame, now)
            else:
                handle(frame)

        more = self._port.fetch(sift, limit, coalesce=coalesce)
        if taken:
            service.flush()
        self._send()
        due = service.deadline()
        if due is not None:
            self._alarm.set(max(_SHORTEST, due - now))
        return more

    def _emit(self, frame: Frame) -> None:
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(frame)

    def _send(self) -> None:
        """Deliver what waits; the network is woken when there is room for more."""
        if self._waiting:
            for _ in range(self._port.deliver(self._waiting)):
                self._waiting.popleft()


def _number() -> int:
    return int.from_bytes(os.urandom(4), "big")
