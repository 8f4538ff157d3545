"""TCP (RFC 9293), the network's side of each connection of a guest.

With window scaling (RFC 7323), selective acknowledgements both ways (RFC 2018,
6675), NewReno's congestion control (RFC 5681, 6582), the retransmission timer
of RFC 6298, keep-alive, and the care of RFC 5961 about forged resets. Segments
go out as large as 64 KiB: the guest's driver takes them uncut. There are no
timestamps; they would make every header longer and change nothing on a link
that is memory.

Whoever has the other side of a connection is its `Endpoint`.
"""

from __future__ import annotations

import heapq
import itertools
import struct
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

from ringzero.core.frames import ETHERNET_HEADER, GSO_NONE, GSO_TCP4, GSO_TCP6, Buffer, Frame
from ringzero.net.stack.ip import IPV6_HEADER, TCP, Packet, Path

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
HEADER = struct.Struct(">HHIIHHHH")
# RFC 9293 section 3.2, RFC 7323, RFC 2018: kinds of options.
_END, _NOP, _MSS, _SCALE, _SACK_PERMITTED, _SACK = 0, 1, 2, 3, 4, 5
# What may be on its way to the endpoint. A full segment takes 64 KiB; sixteen of them
# are more than a guest makes while one is passed on.
WINDOW = 1 << 20
_OUR_SCALE = 7
# Bytes for the guest that it has not acknowledged.
SEND_BUFFER = 1 << 20
# The payload of an IPv4 packet of 64 KiB.
_MAX_SEGMENT = 65535 - 20 - 20
# RFC 9293 section 3.7.1: who does not say takes this; RFC 879. Less than 88 nobody needs.
_DEFAULT_MSS, _MIN_MSS = 536, 88
_MAX_SACK_BLOCKS = 3
# Pieces that came too early, for each connection.
_MAX_EARLY = 256
# The link is memory, and the guest presses back when it has no buffers: no need to feel the way.
_FIRST_CWND, _MAX_CWND = 128 << 10, 4 << 20
# RFC 6298; the shortest as in Linux. RFC 9293 asks to go on for at least 100 s.
_FIRST_RTO, _MIN_RTO, _MAX_RTO = 1.0, 0.2, 60.0
_MAX_RETRIES, _MAX_SYN_RETRIES = 12, 4
# As Linux has it: two hours of silence, then nine probes 75 seconds apart.
_KEEP_ALIVE, _KEEP_ALIVE_INTERVAL, _KEEP_ALIVE_PROBES = 7200.0, 75.0, 9
# A quarter of Linux's shortest: most answers are given sooner, and a guest that waits for the
# acknowledgement before it sends the rest (RFC 896) hardly feels it.
_ACK_DELAY = 0.01
# Two ends of one cable see no old duplicates: enough to answer a last FIN that comes again.
_TIME_WAIT = 5.0
# Connections at once, and those among them that are not up yet. Of the latter the oldest goes.
MAX_CONNECTIONS, MAX_HALF_OPEN = 8192, 1024
_MASK = 0xFFFFFFFF

# States, as far as both directions do not tell more.
OPENING, SYN_SENT, SYN_RECEIVED, ESTABLISHED, TIME_WAIT, CLOSED = range(6)

Key = tuple[bytes, int, bytes, int]


def difference(first: int, second: int) -> int:
    """Return how far the sequence number `first` is ahead of `second`, -2**31 to 2**31-1."""
    return ((first - second + 0x80000000) & _MASK) - 0x80000000


class Endpoint(Protocol):
    """The other side of a guest's connection; called while the stack works."""

    def opened(self) -> None:
        """Hear that the connection is up."""
        ...

    def receive(self, buffers: list[Buffer], size: int) -> int:
        """Take bytes; return how many. The rest is kept: see `Connection.inbox`.

        The bytes are good only during the call.
        """
        ...

    def ended(self) -> None:
        """Hear that the guest sends nothing more. Bytes may be left in the inbox."""
        ...

    def room(self) -> None:
        """Hear that `Connection.room` has grown."""
        ...

    def lost(self) -> None:
        """Hear that the connection is gone, by a reset or for want of an answer."""
        ...


class _Sent:
    """A stretch of sequence numbers that the guest has not acknowledged."""

    __slots__ = ("again", "at", "data", "end", "flags", "sacked", "start")

    def __init__(self, start: int, data: memoryview, flags: int, now: float) -> None:
        self.start, self.data, self.flags, self.at = start, data, flags, now
        self.end = start + len(data) + (1 if flags & (SYN | FIN) else 0) & _MASK
        self.again = self.sacked = False


class Segment:
    """A TCP segment that came, taken apart. `window` is as the header has it."""

    __slots__ = (
        *("ack", "buffers", "destination_port", "flags", "options", "sequence", "size"),
        *("source_port", "window"),
    )

    def __init__(self, packet: Packet) -> None:
        """Raises ValueError where there is none in the packet."""
        head, at = packet.head, packet.at
        if packet.size < HEADER.size or len(head) < at + HEADER.size:
            raise ValueError("a TCP header is cut off")
        (
            self.source_port, self.destination_port, self.sequence, self.ack,
            offset_flags, self.window, _, _,
        ) = HEADER.unpack_from(head, at)  # fmt: skip
        length = (offset_flags >> 12) * 4
        if not HEADER.size <= length <= packet.size or len(head) < at + length:
            raise ValueError("a TCP header of an impossible length")
        self.flags = offset_flags & 0x1F
        self.options = head[at + HEADER.size : at + length]
        self.size = packet.size - length
        self.buffers: list[Buffer] = packet.after(length) if self.size else []


def parse_options(options: bytes) -> dict[int, bytes]:
    """Return the options by their kinds; what makes no sense ends the list."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(options):
        kind = options[at]
        if kind == _END:
            break
        if kind == _NOP:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            break
        found[kind] = options[at + 2 : at + length]
        at += length
    return found


class Connection:
    """One connection. `path` leads to the guest; `local` is the port on the network's side.

    `inbox` holds what the endpoint has not taken. The endpoint calls `accept` or `refuse` for
    a connection that the guest asks for, and `send`, `finish`, `consume` and `abort`.
    """

    def __init__(self, tcp: Tcp, path: Path, local: int, remote: int, sequence: int) -> None:
        self._tcp = tcp
        self.path, self.local, self.remote = path, local, remote
        self.key: Key = (path.destination, remote, path.source, local)
        self.endpoint: Endpoint
        self.state = OPENING
        # How the packet begins by which the guest asked, for ICMP errors, until it is answered.
        self.request: bytes | None = None
        self.inbox: deque[bytes] = deque()
        self.inbox_size = 0
        # Receiving: the next number, the right edge of the window, pieces that came too early.
        self._next = self._edge = self._acked = 0
        self._early: dict[int, bytes] = {}
        self._recent = 0
        self._fin_at: int | None = None
        self.guest_ended = False
        self.ack_due = False
        self._scale_in = 0
        # Sending: unacknowledged and next numbers, the guest's window and its scale.
        self._unacknowledged = self._sending = sequence
        self._window = self._scale_out = 0
        self._flight: deque[_Sent] = deque()
        self._flight_size = 0
        self._unsent: deque[memoryview] = deque()
        self._unsent_size = 0
        self._finishing = self._fin_sent = False
        self._has_sack = False
        self.mss = _DEFAULT_MSS
        self._largest = _DEFAULT_MSS
        # Congestion control and timers.
        self._cwnd, self._threshold = _FIRST_CWND, _MAX_CWND
        self._duplicates = 0
        self._recover: int | None = None
        self._smoothed: float | None = None
        self._variation = 0.0
        self._rto = _FIRST_RTO
        self._retries = 0
        self._heard = self._tcp.now
        self.deadline: float | None = None
        self.scheduled: float | None = None

    # ---- the endpoint's calls ---------------------------------------------

    def accept(self) -> None:
        """Answer the guest, which asked for this connection."""
        if self.state == OPENING:
            self.state, self.request = SYN_RECEIVED, None
            self._send_syn(SYN | ACK)

    def refuse(self) -> None:
        """Answer the guest, which asked for this connection, that nobody listens."""
        if self.state == OPENING:
            self._emit(RST | ACK, 0)
            self._close()

    def drop(self) -> None:
        """Forget the connection without a word: the guest is told otherwise."""
        self._close()

    @property
    def room(self) -> int:
        """How many bytes `send` takes now."""
        return max(0, SEND_BUFFER - self._unsent_size - self._flight_size)

    @property
    def segment_size(self) -> int:
        """How many bytes make the largest segment that is cut evenly."""
        return self._largest

    def send(self, data: bytes) -> None:
        """Send bytes to the guest; they stay unchanged until they are acknowledged."""
        self._unsent.append(memoryview(data))
        self._unsent_size += len(data)
        self._push()

    def finish(self) -> None:
        """Send nothing more after what was given to `send`."""
        if not self._finishing:
            self._finishing = True
            self._push()

    def consume(self, count: int) -> None:
        """Take `count` bytes from the inbox; the guest hears of the room."""
        self.inbox_size -= count
        while count:
            first = self.inbox[0]
            if len(first) <= count:
                self.inbox.popleft()
                count -= len(first)
            else:
                self.inbox[0] = first[count:]
                count = 0
        # RFC 9293 section 3.8.6.2.2: no update for less than is worth it.
        grown = difference(self._next + self._space(), self._edge)
        if grown >= WINDOW // 4 or (self._edge == self._next and grown > 0):
            self._owe_ack()

    def abort(self) -> None:
        """End the connection at once; the guest sees a reset."""
        if self.state in (OPENING, CLOSED):
            self.refuse()
            return
        if self.state != TIME_WAIT:
            self._emit(RST | ACK, self._sending)
        self._close()

    # ---- segments in ------------------------------------------------------

    def ask(self) -> None:
        """Ask the guest for the connection."""
        self.state = SYN_SENT
        self._send_syn(SYN)

    def take_syn(self, segment: Segment) -> None:
        """Begin from the guest's first segment."""
        self._next = segment.sequence + 1 & _MASK
        self._edge = self._next
        self._window = segment.window
        self._take_options(parse_options(segment.options))

    def _take_options(self, options: dict[int, bytes]) -> None:
        mss = options.get(_MSS, b"")
        size = int.from_bytes(mss, "big") if len(mss) == 2 else _DEFAULT_MSS
        self._limit_mss(size)
        scale = options.get(_SCALE, b"")
        if len(scale) == 1:
            # RFC 7323 section 2.3: more than 14 is taken for 14.
            self._scale_out = min(scale[0], 14)
            self._scale_in = _OUR_SCALE
        self._has_sack = _SACK_PERMITTED in options

    def _limit_mss(self, size: int) -> None:
        most = self.path.mtu - self.path.overhead - HEADER.size
        self.mss = max(_MIN_MSS, min(size, most))
        self._largest = _MAX_SEGMENT // self.mss * self.mss

    def lower_mtu(self, mtu: int) -> None:
        """Take an ICMP error that says how large packets may be (RFC 1191, RFC 8201)."""
        size = mtu - self.path.overhead - HEADER.size
        if _MIN_MSS <= size < self.mss and self.state == ESTABLISHED:
            self._limit_mss(size)
            self._retransmit_first()

    def take(self, segment: Segment) -> None:
        """Process a segment (RFC 9293 section 3.10.7)."""
        if self.state == OPENING:
            if segment.flags & RST:
                self._lose()
            return
        if self.state == SYN_SENT:
            self._take_answer(segment)
            return
        self._heard = self._tcp.now
        flags = segment.flags
        offset = difference(segment.sequence, self._next)
        length = segment.size + (1 if flags & FIN else 0) + (1 if flags & SYN else 0)
        window = difference(self._edge, self._next)
        if offset > window or offset + length < 0 or (length and offset + length <= 0):
            # Old, or beyond the window. A duplicate of the guest's SYN wants its answer again.
            if not flags & RST:
                self._owe_ack()
            return
        if flags & RST:
            # RFC 5961 section 3.2: any but the exact number is asked for again.
            if offset == 0:
                self._lose()
            else:
                self._owe_ack()
            return
        if flags & SYN:
            self._owe_ack()
            return
        if not flags & ACK or not self._take_ack(segment):
            return
        if self.state == TIME_WAIT:
            if length:
                self._owe_ack()
            return
        if segment.size or flags & FIN:
            self._take_data(segment, offset, window)
        if self.state == ESTABLISHED:
            self._push()
        self._arm()
        self._settle()

    def _take_answer(self, segment: Segment) -> None:
        flags = segment.flags
        fits = flags & ACK and difference(segment.ack, self._sending) == 0
        if flags & ACK and not fits:
            if not flags & RST:
                self._emit(RST, segment.ack)
            return
        if flags & RST:
            if fits:
                self._lose()
            return
        if not flags & SYN or not fits:
            # Both asking at once (RFC 9293 section 3.5, figure 8) does not happen here.
            return
        self.take_syn(segment)
        self.state = ESTABLISHED
        self._flight.clear()
        self._flight_size = 0
        self._unacknowledged = segment.ack
        self._retries = 0
        self._tcp.half_open.pop(self.key, None)
        self._emit(ACK, self._sending)
        self._heard = self._tcp.now
        self.endpoint.opened()
        self._arm()

    def _take_ack(self, segment: Segment) -> bool:
        """Process an acknowledgement; False where the segment is not worth more."""
        acked = difference(segment.ack, self._unacknowledged)
        if difference(segment.ack, self._sending) > 0:
            if self.state == SYN_RECEIVED:
                self._emit(RST, segment.ack)
            else:
                self._owe_ack()
            return False
        window = segment.window << self._scale_out
        if self.state == SYN_RECEIVED:
            if acked <= 0:
                return False
            self.state = ESTABLISHED
            self._tcp.half_open.pop(self.key, None)
            self._window = window
            self._acknowledged(segment.ack)
            self.endpoint.opened()
            return self.state == ESTABLISHED
        if segment.options and self._has_sack:
            self._take_sack(parse_options(segment.options).get(_SACK, b""))
        if acked > 0:
            self._window = window
            self._acknowledged(segment.ack)
        elif acked == 0:
            same = window == self._window and not segment.size and not segment.flags & FIN
            self._window = window
            if same and self._flight:
                self._duplicates += 1
                # RFC 5681 section 3.2: the third duplicate means a loss.
                if self._duplicates == 3 and self._recover is None:
                    self._begin_recovery()
                elif self._recover is not None:
                    self._retransmit_holes()
            elif not self._flight:
                self._retries = 0
        return True

    def _acknowledged(self, ack: int) -> None:
        count = difference(ack, self._unacknowledged)
        self._unacknowledged = ack
        self._retries = 0
        self._duplicates = 0
        flight = self._flight
        while flight:
            first = flight[0]
            if difference(first.end, ack) > 0:
                left = difference(ack, first.start)
                if left > 0:
                    first.data = first.data[left:]
                    first.start = ack
                    self._flight_size -= left
                break
            flight.popleft()
            self._flight_size -= len(first.data)
            if not first.again:
                self._measure(self._tcp.now - first.at)
        if self._recover is not None:
            if difference(ack, self._recover) >= 0:
                self._recover = None
                self._cwnd = max(self._threshold, 2 * self.mss)
            else:
                self._retransmit_holes()
        elif self._cwnd < self._threshold:
            self._cwnd = min(self._cwnd + count, _MAX_CWND)
        else:
            self._cwnd = min(self._cwnd + max(1, self.mss * count // self._cwnd), _MAX_CWND)
        if self.state == ESTABLISHED and not self._finishing:
            self.endpoint.room()

    def _measure(self, seconds: float) -> None:
        """Take a round trip into the timer (RFC 6298 section 2)."""
        if self._smoothed is None:
            self._smoothed, self._variation = seconds, seconds / 2
        else:
            self._variation += (abs(self._smoothed - seconds) - self._variation) / 4
            self._smoothed += (seconds - self._smoothed) / 8
        self._rto = min(max(self._smoothed + 4 * self._variation, _MIN_RTO), _MAX_RTO)

    def _take_sack(self, blocks: bytes) -> None:
        for at in range(0, len(blocks) - 7, 8):
            left, right = struct.unpack_from(">II", blocks, at)
            for sent in self._flight:
                if difference(sent.start, left) >= 0 and difference(right, sent.end) >= 0:
                    sent.sacked = True

    def _take_data(self, segment: Segment, offset: int, window: int) -> None:
        size, gap = segment.size, bool(self._early) or offset > 0
        if segment.flags & FIN:
            fin_at = segment.sequence + size & _MASK
            if offset + size <= window:
                self._fin_at = fin_at
        buffers = segment.buffers
        if offset < 0 or offset + size > window:
            if size:
                data = b"".join(buffers)[max(0, -offset) : max(0, window - offset)]
                buffers, size = [data], len(data)
            offset = max(offset, 0)
        if size:
            if offset == 0 and not self._early:
                self._deliver(buffers, size)
            else:
                self._keep_early(self._next + offset & _MASK, b"".join(buffers))
        elif not segment.size and offset:
            self._owe_ack()
        if self._fin_at is not None and self._fin_at == self._next and not self.guest_ended:
            self._next = self._next + 1 & _MASK
            self._edge = self._next + max(0, difference(self._edge, self._next)) & _MASK
            self.guest_ended = True
            self._early.clear()
            self.endpoint.ended()
        # RFC 5681 section 4.2: at once for every second full segment, and where some are missing.
        many = difference(self._next, self._acked) >= 2 * self.mss
        if many or gap or not size or self.guest_ended:
            self._owe_ack()
        else:
            self._delay_ack()

    def _deliver(self, buffers: list[Buffer], size: int) -> None:
        """Pass on bytes that come next."""
        if self.guest_ended:
            return
        self._next = self._next + size & _MASK
        taken = self.endpoint.receive(buffers, size) if not self.inbox_size else 0
        if taken < size and self.state not in (CLOSED, TIME_WAIT):
            for buffer in buffers:
                if taken >= len(buffer):
                    taken -= len(buffer)
                    continue
                self.inbox.append(bytes(buffer[taken:]))
                self.inbox_size += len(buffer) - taken
                taken = 0

    def _keep_early(self, sequence: int, data: bytes) -> None:
        """Keep a piece until those before it have come, and pass on what can be."""
        early = self._early
        if len(early) < _MAX_EARLY and len(early.get(sequence, b"")) < len(data):
            early[sequence] = data
            self._recent = sequence
        while early:
            start = min(early, key=lambda number: difference(number, self._next))
            ahead = difference(start, self._next)
            if ahead > 0:
                break
            piece = early.pop(start)[-ahead:] if ahead else early.pop(start)
            if piece:
                self._deliver([piece], len(piece))

    def _sack_blocks(self) -> bytes:
        """Return the option that tells of pieces that came early, the latest first."""
        blocks: list[tuple[int, int]] = []
        for start in sorted(self._early, key=lambda number: difference(number, self._next)):
            end = start + len(self._early[start]) & _MASK
            if blocks and difference(blocks[-1][1], start) >= 0:
                last = blocks[-1]
                blocks[-1] = (last[0], end if difference(end, last[1]) > 0 else last[1])
            else:
                blocks.append((start, end))
        latest = [b for b in blocks if 0 <= difference(self._recent, b[0]) < 0x7FFFFFFF]
        if latest:
            blocks.remove(latest[-1])
            blocks.insert(0, latest[-1])
        data = b"".join(struct.pack(">II", *block) for block in blocks[:_MAX_SACK_BLOCKS])
        return bytes((_NOP, _NOP, _SACK, len(data) + 2)) + data

    # ---- segments out -----------------------------------------------------

    def _space(self) -> int:
        most = WINDOW if self._scale_in else 0xFFFF
        return max(0, most - self.inbox_size)

    def _owe_ack(self) -> None:
        self.ack_due = True
        self._tcp.owing[self] = None

    def _delay_ack(self) -> None:
        """Acknowledge soon; what is sent meanwhile does it (RFC 9293 section 3.8.6.3)."""
        self.ack_due = True
        self._tcp.delayed.setdefault(self, self._tcp.now + _ACK_DELAY)

    def send_ack(self) -> None:
        """Send the acknowledgement that is due."""
        if self.ack_due and self.state not in (OPENING, SYN_SENT, CLOSED):
            self._emit(ACK, self._sending)

    def _send_syn(self, flags: int) -> None:
        self._flight.append(_Sent(self._sending, memoryview(b""), flags, self._tcp.now))
        self._sending = self._sending + 1 & _MASK
        self._emit(flags, self._unacknowledged)
        self._arm()

    def _emit(self, flags: int, sequence: int, data: memoryview | None = None) -> None:
        options = b""
        if flags & SYN:
            mss = self.path.mtu - self.path.overhead - HEADER.size
            options = struct.pack(">BBH", _MSS, 4, mss)
            if not flags & ACK or self._scale_in:
                options += bytes((_NOP, _SCALE, 3, _OUR_SCALE))
            if not flags & ACK or self._has_sack:
                options += bytes((_NOP, _NOP, _SACK_PERMITTED, 2))
            window = min(self._space(), 0xFFFF)
            self._edge = self._next + window & _MASK
        else:
            if self._early and self._has_sack and not data:
                options = self._sack_blocks()
            # The right edge never goes back (RFC 9293 section 3.8.6).
            edge = self._next + self._space() & _MASK
            if difference(edge, self._edge) > 0:
                self._edge = edge
            window = min(difference(self._edge, self._next) >> self._scale_in, 0xFFFF)
            if self._scale_in and difference(self._edge, self._next) > 0 and not window:
                window = 1
        self._acked = self._next
        if self.ack_due:
            self.ack_due = False
            self._tcp.owing.pop(self, None)
            self._tcp.delayed.pop(self, None)
        path, size = self.path, len(data) if data is not None else 0
        length = HEADER.size + len(options) + size
        header = path.header(TCP, length) + HEADER.pack(
            *(self.local, self.remote, sequence & _MASK, self._next if flags & ACK else 0),
            *((HEADER.size + len(options)) << 10 | flags, window),
            *(path.partial_sum(TCP, length), 0),
        )
        gso, gso_size = GSO_NONE, 0
        if size > self.mss:
            gso = GSO_TCP6 if path.overhead == IPV6_HEADER else GSO_TCP4
            gso_size = self.mss
        self._tcp.emit(
            Frame(
                *(header + options, (data,) if data else ()),
                *(ETHERNET_HEADER + path.overhead, 16, gso, gso_size),
            )
        )

    def _push(self) -> None:
        """Send what the guest's window and the congestion window allow."""
        if self.state != ESTABLISHED:
            return
        sent = False
        unsent = self._unsent
        while unsent:
            usable = min(self._window, self._cwnd) - self._flight_size
            view = unsent[0]
            count = min(len(view), usable, self._largest)
            # RFC 9293 section 3.8.6.2.1: no small segment only because the window is small.
            if count <= 0 or (count < len(view) and count < self.mss and self._flight):
                break
            if count == len(view):
                unsent.popleft()
                piece = view
            else:
                piece = view[:count]
                unsent[0] = view[count:]
            self._unsent_size -= count
            self._transmit(piece, PSH | ACK if not unsent else ACK)
            sent = True
        if self._finishing and not unsent and not self._fin_sent:
            self._fin_sent = True
            self._transmit(memoryview(b""), FIN | ACK)
            sent = True
        if sent or unsent:
            self._arm()

    def _transmit(self, data: memoryview, flags: int) -> None:
        sent = _Sent(self._sending, data, flags, self._tcp.now)
        self._flight.append(sent)
        self._flight_size += len(data)
        self._sending = sent.end
        self._emit(flags, sent.start, data)

    # ---- losses -----------------------------------------------------------

    def _begin_recovery(self) -> None:
        self._recover = self._sending
        self._threshold = max(self._flight_size // 2, 2 * self.mss)
        self._cwnd = self._threshold
        for sent in self._flight:
            sent.again = False
        self._retransmit_first()
        self._retransmit_holes()

    def _retransmit_first(self) -> None:
        if self._flight:
            self._retransmit(self._flight[0])

    def _retransmit(self, sent: _Sent) -> None:
        sent.again, sent.at = True, self._tcp.now
        if sent.flags & SYN:
            self._emit(sent.flags, sent.start)
        else:
            self._emit(sent.flags, sent.start, sent.data)

    def _retransmit_holes(self) -> None:
        """Send again what the guest lacks: before what it has selectively, and the first."""
        flight = self._flight
        if flight and not flight[0].again and not flight[0].sacked:
            self._retransmit(flight[0])
        last = max((n for n, sent in enumerate(flight) if sent.sacked), default=0)
        for sent in itertools.islice(flight, last):
            if not sent.sacked and not sent.again:
                self._retransmit(sent)

    # ---- time -------------------------------------------------------------

    def _arm(self) -> None:
        if self.state == CLOSED:
            return
        if self._flight:
            wait = min(self._rto * 2**self._retries, _MAX_RTO)
            self.deadline = self._flight[0].at + wait
        elif self._unsent and self.state == ESTABLISHED:
            # RFC 9293 section 3.8.6.1: the guest's window is closed; ask now and then.
            self.deadline = self._tcp.now + min(self._rto * 2**self._retries, _MAX_RTO)
        elif self.state == TIME_WAIT:
            return
        else:
            self.deadline = self._heard + _KEEP_ALIVE + self._retries * _KEEP_ALIVE_INTERVAL
        self._tcp.schedule(self, self.deadline)

    def expire(self) -> None:
        """Do what is due at `deadline`."""
        if self.state == TIME_WAIT:
            self._close()
            return
        if self.state == OPENING:
            return
        self._retries += 1
        if self._flight:
            opening = self.state in (SYN_SENT, SYN_RECEIVED)
            if self._retries > (_MAX_SYN_RETRIES if opening else _MAX_RETRIES):
                self._lose()
                return
            self._threshold = max(self._flight_size // 2, 2 * self.mss)
            self._cwnd = max(2 * self.mss, self._largest)
            self._recover = self._sending
            for sent in self._flight:
                sent.again = sent.sacked = False
            self._retransmit_first()
        elif self._unsent:
            # The guest answers even where it takes nothing, so that this may go on for long.
            view = self._unsent[0]
            self._unsent[0] = view[1:]
            if not self._unsent[0]:
                self._unsent.popleft()
            self._unsent_size -= 1
            self._transmit(view[:1], ACK)
        else:
            if self._retries > _KEEP_ALIVE_PROBES:
                self.abort()
                self.endpoint.lost()
                return
            self._emit(ACK, self._sending - 1)
        self._arm()

    # ---- the end ----------------------------------------------------------

    def _settle(self) -> None:
        """See whether both directions have ended."""
        if self.guest_ended and self._fin_sent and not self._flight and self.state == ESTABLISHED:
            self.state = TIME_WAIT
            self.deadline = self._tcp.now + _TIME_WAIT
            self._tcp.schedule(self, self.deadline)

    def _lose(self) -> None:
        self._close()
        self.endpoint.lost()

    def _close(self) -> None:
        self.state = CLOSED
        self.deadline = None
        self._flight.clear()
        self._unsent.clear()
        self._early.clear()
        self._flight_size = self._unsent_size = 0
        self._tcp.forget(self)


class Tcp:
    """All connections. `emit` takes frames for the guest.

    `opener` is told of a connection that the guest asks for; it sets `endpoint`, and has
    `accept` or `refuse` called. `number` gives the first sequence number of a connection,
    32 bits that nobody can guess (RFC 6528).
    """

    def __init__(
        self,
        emit: Callable[[Frame], None],
        opener: Callable[[Connection], None],
        number: Callable[[], int],
    ) -> None:
        self.emit = emit
        self._opener = opener
        self._number = number
        self.connections: dict[Key, Connection] = {}
        self.half_open: OrderedDict[Key, Connection] = OrderedDict()
        # Connections that owe an acknowledgement.
        self.owing: dict[Connection, None] = {}
        # Those that do so by a certain time, the first one first.
        self.delayed: dict[Connection, float] = {}
        self._timers: list[tuple[float, int, Connection]] = []
        self._order = itertools.count()
        # What time it is, in seconds: whoever calls says so first.
        self.now = 0.0

    def moved(self, address: bytes, mac: bytes) -> None:
        """Hear that a guest has another MAC address, as one that was copied a moment ago."""
        for connection in self.connections.values():
            path = connection.path
            if path.destination == address:
                path.ethernet = mac + path.ethernet[6:]

    def receive(self, packet: Packet, back: Path | None) -> None:
        """Take a packet of a guest; `back` is the way to it, where it is known to be new."""
        try:
            segment = Segment(packet)
        except ValueError:
            return
        if not packet.checksum_fits():
            return
        key = (packet.source, segment.source_port, packet.destination, segment.destination_port)
        connection = self.connections.get(key)
        anew = segment.flags & (SYN | ACK | RST) == SYN
        if connection is not None and connection.state == TIME_WAIT and anew:
            # RFC 9293 section 3.10.7.4: a new connection may take the place of an old one.
            self.forget(connection)
            connection = None
        if connection is not None:
            connection.take(segment)
        elif back is not None:
            self._begin(packet, segment, back)

    def _begin(self, packet: Packet, segment: Segment, back: Path) -> None:
        flags = segment.flags
        if flags & RST:
            return
        ports = segment.destination_port, segment.source_port
        if flags & (SYN | ACK) != SYN or len(self.connections) >= MAX_CONNECTIONS:
            self._reset(segment, back)
            return
        connection = self._add(Connection(self, back, *ports, self._number()))
        connection.request = packet.original()
        connection.take_syn(segment)
        self._opener(connection)

    def _reset(self, segment: Segment, back: Path) -> None:
        """Answer what belongs to no connection (RFC 9293 section 3.10.7.1)."""
        flags, sequence, acknowledged = RST, segment.ack, 0
        if not segment.flags & ACK:
            length = segment.size + bool(segment.flags & SYN) + bool(segment.flags & FIN)
            flags, sequence, acknowledged = RST | ACK, 0, segment.sequence + length & _MASK
        header = HEADER.pack(
            *(segment.destination_port, segment.source_port, sequence, acknowledged),
            *(HEADER.size << 10 | flags, 0, back.partial_sum(TCP, HEADER.size), 0),
        )
        start = ETHERNET_HEADER + back.overhead
        self.emit(Frame(back.header(TCP, HEADER.size) + header, (), start, 16))

    def connect(self, path: Path, local: int, remote: int, endpoint: Endpoint) -> Connection | None:
        """Ask a guest for a connection to its port `remote`; None where there are too many."""
        key = (path.destination, remote, path.source, local)
        if key in self.connections or len(self.connections) >= MAX_CONNECTIONS:
            return None
        connection = self._add(Connection(self, path, local, remote, self._number()))
        connection.endpoint = endpoint
        connection.ask()
        return connection

    def _add(self, connection: Connection) -> Connection:
        self.connections[connection.key] = connection
        self.half_open[connection.key] = connection
        if len(self.half_open) > MAX_HALF_OPEN:
            oldest = next(iter(self.half_open.values()))
            oldest.abort()
            oldest.endpoint.lost()
        return connection

    def forget(self, connection: Connection) -> None:
        """Drop a connection from all tables."""
        if self.connections.get(connection.key) is connection:
            del self.connections[connection.key]
        if self.half_open.get(connection.key) is connection:
            del self.half_open[connection.key]
        self.owing.pop(connection, None)
        self.delayed.pop(connection, None)

    def schedule(self, connection: Connection, deadline: float) -> None:
        """See to it that the connection's `expire` is called at its deadline."""
        if connection.scheduled is None or deadline < connection.scheduled:
            connection.scheduled = deadline
            heapq.heappush(self._timers, (deadline, next(self._order), connection))

    def flush(self) -> None:
        """Send the acknowledgements that are due."""
        while self.owing:
            connection, _ = self.owing.popitem()
            connection.send_ack()

    def deadline(self) -> float | None:
        """Return when `expire` is to be called next."""
        first = next(iter(self.delayed.values()), None)
        if self._timers:
            return self._timers[0][0] if first is None else min(first, self._timers[0][0])
        return first

    def expire(self) -> None:
        """Do what is due."""
        while self.delayed:
            late, moment = next(iter(self.delayed.items()))
            if moment > self.now:
                break
            del self.delayed[late]
            late.send_ack()
        timers = self._timers
        while timers and timers[0][0] <= self.now:
            moment, _, connection = heapq.heappop(timers)
            if connection.scheduled != moment:
                continue
            connection.scheduled = None
            if connection.deadline is None or connection.state == CLOSED:
                continue
            if connection.deadline <= self.now:
                connection.expire()
            else:
                self.schedule(connection, connection.deadline)
