"""What goes to a guest by one connection: windows, losses, and how long to wait for an answer."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable

from ringzero.net.stack.tcp.segment import ACK, DEFAULT_MSS, FIN, MASK, PSH, SYN, difference

# Bytes for the guest that it has not acknowledged.
SEND_BUFFER = 1 << 20
# The payload of an IPv4 packet of 64 KiB.
_MAX_SEGMENT = 65535 - 20 - 20
# Less than 88 nobody needs (RFC 879).
MIN_MSS = 88
# The link is memory, and the guest presses back when it has no buffers: no need to feel the way.
_FIRST_CWND, _MAX_CWND = 128 << 10, 4 << 20
# RFC 6298; the shortest as in Linux.
_FIRST_RTO, _MIN_RTO, _MAX_RTO = 1.0, 0.2, 60.0
# A guest that comes up loses what comes a moment too soon, and whoever waits for it waits for this.
_SYN_RTO = 0.05
_NOTHING = memoryview(b"")

# Sends a segment: flags, sequence number, payload.
Emit = Callable[[int, int, memoryview | None], None]


class Sent:
    """A stretch of sequence numbers that the guest has not acknowledged."""

    __slots__ = ("again", "at", "data", "end", "flags", "sacked", "start")

    def __init__(self, start: int, data: memoryview, flags: int, now: float) -> None:
        self.start, self.data, self.flags, self.at = start, data, flags, now
        self.end = start + len(data) + (1 if flags & (SYN | FIN) else 0) & MASK
        self.again = self.sacked = False


class Sender:
    """The sending side, from the sequence number `first` on.

    `unacknowledged` and `next` are SND.UNA and SND.NXT, `window` is the guest's, in bytes.
    `flight` is what is between them, `flight_size` its payload. Times are the caller's, in
    seconds.
    """

    __slots__ = (
        *("_cwnd", "_duplicates", "_emit", "_recover", "_rto", "_smoothed", "_threshold"),
        *("_variation", "fin_sent", "finishing", "flight", "flight_size", "largest", "mss"),
        *("next", "retries", "scale", "unacknowledged", "unsent", "unsent_size", "window"),
    )

    def __init__(self, first: int, emit: Emit) -> None:
        self._emit = emit
        self.unacknowledged = self.next = first
        self.window = self.scale = 0
        self.flight: deque[Sent] = deque()
        self.flight_size = 0
        self.unsent: deque[memoryview] = deque()
        self.unsent_size = 0
        # Whether nothing comes behind what is unsent, and whether the guest was told so.
        self.finishing = self.fin_sent = False
        # The largest payload on the wire, and the largest that is left uncut.
        self.mss = self.largest = DEFAULT_MSS
        self._cwnd, self._threshold = _FIRST_CWND, _MAX_CWND
        self._duplicates = 0
        # While losses are repaired: what was the next number when the first was seen.
        self._recover: int | None = None
        self._smoothed: float | None = None
        self._variation = 0.0
        self._rto = _FIRST_RTO
        self.retries = 0

    @property
    def room(self) -> int:
        """How many bytes more may be given."""
        return max(0, SEND_BUFFER - self.unsent_size - self.flight_size)

    def limit(self, mss: int) -> None:
        """Send segments of at most `mss` bytes."""
        self.mss = max(MIN_MSS, mss)
        self.largest = _MAX_SEGMENT // self.mss * self.mss

    def give(self, data: bytes) -> None:
        """Have bytes sent by the next `push`; they stay unchanged until they are acknowledged."""
        self.unsent.append(memoryview(data))
        self.unsent_size += len(data)

    # ---- segments out -----------------------------------------------------

    def send_syn(self, flags: int, now: float) -> None:
        """Send the first segment."""
        start = self.next
        self.flight.append(Sent(start, _NOTHING, flags, now))
        self.next = start + 1 & MASK
        self._emit(flags, start, None)

    def push(self, now: float) -> None:
        """Send what the guest's window and the congestion window allow."""
        unsent = self.unsent
        while unsent:
            usable = min(self.window, self._cwnd) - self.flight_size
            view = unsent[0]
            count = min(len(view), usable, self.largest)
            # RFC 9293 section 3.8.6.2.1: no small segment only because the window is small.
            if count <= 0 or (count < len(view) and count < self.mss and self.flight):
                break
            if count == len(view):
                unsent.popleft()
                piece = view
            else:
                piece = view[:count]
                unsent[0] = view[count:]
            self.unsent_size -= count
            self._transmit(piece, ACK if unsent else PSH | ACK, now)
        if self.finishing and not unsent and not self.fin_sent:
            self.fin_sent = True
            self._transmit(_NOTHING, FIN | ACK, now)

    def _transmit(self, data: memoryview, flags: int, now: float) -> None:
        sent = Sent(self.next, data, flags, now)
        self.flight.append(sent)
        self.flight_size += len(data)
        self.next = sent.end
        self._emit(flags, sent.start, data)

    def probe(self, now: float) -> None:
        """Send one byte into a closed window (RFC 9293 section 3.8.6.1)."""
        view = self.unsent[0]
        if len(view) == 1:
            self.unsent.popleft()
        else:
            self.unsent[0] = view[1:]
        self.unsent_size -= 1
        self._transmit(view[:1], ACK, now)

    def answered(self, ack: int) -> None:
        """Hear that the guest has taken the SYN: nothing is on its way."""
        self.flight.clear()
        self.flight_size = self.retries = 0
        self.unacknowledged = ack

    # ---- acknowledgements -------------------------------------------------

    def acknowledged(self, ack: int, now: float) -> None:
        """Take an acknowledgement of something new."""
        count = difference(ack, self.unacknowledged)
        self.unacknowledged = ack
        self.retries = self._duplicates = 0
        flight = self.flight
        while flight:
            first = flight[0]
            if difference(first.end, ack) > 0:
                left = difference(ack, first.start)
                if left > 0:
                    first.data = first.data[left:]
                    first.start = ack
                    self.flight_size -= left
                break
            flight.popleft()
            self.flight_size -= len(first.data)
            if not first.again:
                self._measure(now - first.at)
        cwnd = self._cwnd
        if self._recover is not None:
            if difference(ack, self._recover) >= 0:
                self._recover = None
                self._cwnd = max(self._threshold, 2 * self.mss)
            else:
                self.retransmit_holes(now)
        elif cwnd < self._threshold:
            self._cwnd = min(cwnd + count, _MAX_CWND)
        elif cwnd < _MAX_CWND:
            self._cwnd = min(cwnd + max(1, self.mss * count // cwnd), _MAX_CWND)

    def repeated(self, window: int, plain: bool, now: float) -> None:
        """Take an acknowledgement of nothing new; `plain` says that it came with nothing else."""
        same = plain and window == self.window
        self.window = window
        if same and self.flight:
            self._duplicates += 1
            # RFC 5681 section 3.2: the third duplicate means a loss.
            if self._duplicates == 3 and self._recover is None:
                self._begin_recovery(now)
            elif self._recover is not None:
                self.retransmit_holes(now)
        elif not self.flight:
            self.retries = 0

    def take_sack(self, blocks: list[tuple[int, int]]) -> None:
        """Hear what the guest has besides what it acknowledges."""
        for left, right in blocks:
            for sent in self.flight:
                if difference(sent.start, left) >= 0 and difference(right, sent.end) >= 0:
                    sent.sacked = True

    def _measure(self, seconds: float) -> None:
        """Take a round trip into the timer (RFC 6298 section 2).

        One of more than a second is that of somebody who stood still, as a stopped process does.
        """
        seconds = min(seconds, _FIRST_RTO)
        if self._smoothed is None:
            self._smoothed, self._variation = seconds, seconds / 2
        else:
            self._variation += (abs(self._smoothed - seconds) - self._variation) / 4
            self._smoothed += (seconds - self._smoothed) / 8
        self._rto = min(max(self._smoothed + 4 * self._variation, _MIN_RTO), _MAX_RTO)

    # ---- losses -----------------------------------------------------------

    def _begin_recovery(self, now: float) -> None:
        self._recover = self.next
        self._threshold = max(self.flight_size // 2, 2 * self.mss)
        self._cwnd = self._threshold
        for sent in self.flight:
            sent.again = False
        self.retransmit_first(now)
        self.retransmit_holes(now)

    def retransmit_first(self, now: float) -> None:
        """Send again what has waited for longest."""
        if self.flight:
            self._retransmit(self.flight[0], now)

    def _retransmit(self, sent: Sent, now: float) -> None:
        sent.again, sent.at = True, now
        self._emit(sent.flags, sent.start, None if sent.flags & SYN else sent.data)

    def retransmit_holes(self, now: float) -> None:
        """Send again what the guest lacks: before what it has selectively, and the first."""
        flight = self.flight
        if flight and not flight[0].again and not flight[0].sacked:
            self._retransmit(flight[0], now)
        last = max((n for n, sent in enumerate(flight) if sent.sacked), default=0)
        for sent in itertools.islice(flight, last):
            if not sent.sacked and not sent.again:
                self._retransmit(sent, now)

    def wait(self) -> float:
        """Return how long to wait for an answer, longer with each try (RFC 6298 section 5.5)."""
        opening = self.flight and self.flight[0].flags & SYN
        first = _SYN_RTO if opening else self._rto
        return min(first * 2**self.retries if self.retries else first, _MAX_RTO)

    def timed_out(self, now: float) -> None:
        """Hear that no answer has come: everything on its way is taken for lost."""
        self._threshold = max(self.flight_size // 2, 2 * self.mss)
        self._cwnd = max(2 * self.mss, self.largest)
        self._recover = self.next
        for sent in self.flight:
            sent.again = sent.sacked = False
        self.retransmit_first(now)

    def close(self) -> None:
        """Send nothing more."""
        self.flight.clear()
        self.unsent.clear()
        self.flight_size = self.unsent_size = 0
