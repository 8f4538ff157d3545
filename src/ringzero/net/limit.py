"""Rate limits of an interface: token buckets for bytes and packets, each way.

A limited port stands between an interface and any network. Nothing is dropped by it: the guest's
frames wait in its queue, and those for it wait where the network keeps what finds no room.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from ringzero.core.buckets import Bucket, Tokens
from ringzero.core.frames import Frame
from ringzero.net.alarm import AlarmedPort
from ringzero.net.contract import Port
from ringzero.records import record


@record
class Limits:
    """What one direction is allowed; None means everything."""

    bytes: Bucket | None = None
    packets: Bucket | None = None

    def buckets(self) -> list[tuple[Bucket, Callable[[Frame], int]]]:
        """Return the buckets, with what a frame costs of each."""
        found: list[tuple[Bucket, Callable[[Frame], int]]] = []
        if self.bytes is not None:
            found.append((self.bytes, lambda frame: frame.size))
        if self.packets is not None:
            found.append((self.packets, packets_of))
        return found


class _Direction:
    """The buckets of one direction."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._tokens = [(Tokens(bucket, now), cost) for bucket, cost in limits.buckets()]

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def wait(self, now: float) -> float:
        return max((tokens.wait(now) for tokens, _ in self._tokens), default=0.0)

    def take(self, frame: Frame) -> None:
        for tokens, cost in self._tokens:
            tokens.take(cost(frame))


class LimitedPort(AlarmedPort):
    """A port (`ringzero.net.contract.Port`) through which no more than so much passes.

    `sent` limits what the guest sends, `received` what it gets. `wake` is the network's, called
    when there is something to take again. Raises InvalidValueError.
    """

    def __init__(
        self,
        port: Port,
        wake: Callable[[], None],
        *,
        sent: Limits | None = None,
        received: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(port, wake)
        self._clock = clock
        now = clock()
        self._sent = _Direction(sent or Limits(), now)
        self._received = _Direction(received or Limits(), now)

    def fetch(self, handle: Callable[[Frame], None], limit: int, *, coalesce: bool = False) -> bool:
        """As `Port.fetch`; what is over the limit stays in the guest's queue."""
        sent = self._sent
        if not sent:
            return self._port.fetch(handle, limit, coalesce=coalesce)

        def pay(frame: Frame) -> None:
            sent.take(frame)
            handle(frame)

        for _ in range(limit):
            wait = sent.wait(self._clock())
            if wait:
                self._alarm.set(wait)
                return False
            if not self._port.fetch(pay, 1, coalesce=coalesce):
                return False
        return True

    def deliver(self, frames: Sequence[Frame]) -> int:
        """As `Port.deliver`; what is over the limit is not taken, and `wake` tells of more."""
        received = self._received
        if not received:
            return self._port.deliver(frames)
        done = 0
        for frame in _each(frames):
            wait = received.wait(self._clock())
            if wait:
                self._alarm.set(wait)
                break
            if not self._port.deliver([frame]):
                break
            received.take(frame)
            done += 1
        return done

    def limit(self, sent: Limits, received: Limits) -> None:
        """Have other limits from now on; their buckets are full. Raises InvalidValueError."""
        now = self._clock()
        self._sent, self._received = _Direction(sent, now), _Direction(received, now)
        self._wake()


def _each(frames: Sequence[Frame]) -> Iterable[Frame]:
    # A deque may not change while it is walked through, and a network appends to its own.
    return list(islice(frames, len(frames)))


def packets_of(frame: Frame) -> int:
    """Return how many packets a frame is, once it is cut."""
    if not frame.gso or not frame.gso_size:
        return 1
    # Headers are of no account against the payload.
    return max(1, -(-(frame.size - frame.checksum_start) // frame.gso_size))
