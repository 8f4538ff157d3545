"""Rate limits of an interface: token buckets for bytes and packets, each way.

A limited port stands between an interface and any network. Nothing is dropped by it: the guest's
frames wait in its queue, and those for it wait where the network keeps what finds no room.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from ringzero.core.buckets import Bucket, Tokens
from ringzero.core.frames import Frame
from ringzero.host.service import OnFault, ServiceThread
from ringzero.net.contract import Port
from ringzero.records import record

# How long `close` waits for the thread, in seconds.
_PATIENCE = 5.0


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


class LimitedPort:
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
        self._port, self._wake, self._clock = port, wake, clock
        now = clock()
        self._sent = _Direction(sent or Limits(), now)
        self._received = _Direction(received or Limits(), now)
        # Hears of an exception that ends the thread.
        self.on_fault: OnFault | None = None
        self._alarm = Alarm(self._wake, self._failed)
        self.set_link = port.set_link
        self.settle = port.settle

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


def _each(frames: Sequence[Frame]) -> Iterable[Frame]:
    # A deque may not change while it is walked through, and a network appends to its own.
    return list(islice(frames, len(frames)))


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


def packets_of(frame: Frame) -> int:
    """Return how many packets a frame is, once it is cut."""
    if not frame.gso or not frame.gso_size:
        return 1
    # Headers are of no account against the payload.
    return max(1, -(-(frame.size - frame.checksum_start) // frame.gso_size))
