"""One TCP connection of a guest: its states (RFC 9293 section 3.10), its timers, its end."""

from __future__ import annotations

import struct
from collections import deque
from typing import Protocol

from ringzero.core.frames import Buffer, Frame
from ringzero.net.stack.addresses import text
from ringzero.net.stack.ip import Path, key_of
from ringzero.net.stack.tcp.endpoint import Endpoint
from ringzero.net.stack.tcp.receiver import SCALE, Receiver
from ringzero.net.stack.tcp.segment import (
    ACK,
    DEFAULT_MSS,
    FIN,
    HEADER,
    MASK,
    OPTION_MSS,
    OPTION_SACK,
    OPTION_SACK_PERMITTED,
    OPTION_SCALE,
    PSH,
    RST,
    SYN,
    Segment,
    difference,
    frame,
    parse_options,
    sack_blocks,
    sack_option,
    syn_options,
)
from ringzero.net.stack.tcp.sender import MIN_MSS, Sender

# RFC 9293 asks to go on for at least 100 s; who asks for a connection is told after 26 s.
_MAX_RETRIES, _MAX_SYN_RETRIES = 12, 8
# As Linux has it: two hours of silence, then nine probes 75 seconds apart.
_KEEP_ALIVE, _KEEP_ALIVE_INTERVAL, _KEEP_ALIVE_PROBES = 7200.0, 75.0, 9
# Two ends of one cable see no old duplicates: enough to answer a last FIN that comes again.
_TIME_WAIT = 5.0

# States, as far as both directions do not tell more.
OPENING, SYN_SENT, SYN_RECEIVED, ESTABLISHED, TIME_WAIT, CLOSED = range(6)

_PORTS = struct.Struct(">HH")


class Table(Protocol):
    """What a connection asks of the table that it is in (`ringzero.net.stack.tcp.table`)."""

    # What time it is, in seconds.
    now: float

    def emit(self, frame: Frame) -> None:
        """Send a frame to the guest."""
        ...

    def is_up(self, connection: Connection) -> None:
        """Hear that a connection is not half-open any more."""
        ...

    def owe(self, connection: Connection) -> None:
        """Have `send_ack` called at the end of this batch of frames."""
        ...

    def delay(self, connection: Connection) -> None:
        """Have `send_ack` called soon, if nothing goes out before."""
        ...

    def acknowledged(self, connection: Connection) -> None:
        """Hear that an acknowledgement is owed no more."""
        ...

    def schedule(self, connection: Connection, deadline: float) -> None:
        """Have `expire` called at its deadline."""
        ...

    def forget(self, connection: Connection) -> None:
        """Drop the connection from all tables."""
        ...


class Connection:
    """One connection. `path` leads to the guest; `local` is the port on the network's side.

    `inbox` holds what the endpoint has not taken. The endpoint calls `accept` or `refuse` for
    a connection that the guest asks for, and `send`, `finish`, `consume` and `abort`.
    """

    __slots__ = (
        *("_has_sack", "_heard", "_ports", "_receiver", "_sender", "_table", "ack_due"),
        *("deadline", "endpoint", "key", "local", "path", "remote", "request", "scheduled"),
        *("state",),
    )

    def __init__(self, table: Table, path: Path, local: int, remote: int, sequence: int) -> None:
        self._table = table
        self.path, self.local, self.remote = path, local, remote
        self.key = key_of(path.destination, remote, path.source, local)
        self._ports = _PORTS.pack(local, remote)
        self.endpoint: Endpoint
        self.state = OPENING
        # How the packet begins by which the guest asked, for ICMP errors, until it is answered.
        self.request: bytes | None = None
        self._receiver = Receiver(self._offer)
        self._sender = Sender(sequence, self._emit)
        self._has_sack = False
        self.ack_due = False
        self._heard = table.now
        self.deadline: float | None = None
        self.scheduled: float | None = None

    def __str__(self) -> str:
        guest, other = text(self.path.destination), text(self.path.source)
        return f"of {guest} port {self.remote} and {other} port {self.local}"

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
        return self._sender.room

    @property
    def mss(self) -> int:
        """How many bytes of payload a packet to the guest has at most."""
        return self._sender.mss

    @property
    def segment_size(self) -> int:
        """How many bytes make the largest segment that is cut evenly."""
        return self._sender.largest

    @property
    def next_sequence(self) -> int:
        """The sequence number of what is sent to the guest next."""
        return self._sender.next

    @property
    def next_expected(self) -> int:
        """The sequence number of what the guest sends next."""
        return self._receiver.next

    @property
    def inbox(self) -> deque[bytes]:
        """What the endpoint has not taken."""
        return self._receiver.inbox

    @property
    def inbox_size(self) -> int:
        """How many bytes the endpoint has not taken."""
        return self._receiver.inbox_size

    @property
    def unsent_size(self) -> int:
        """How many bytes for the guest were not sent yet."""
        return self._sender.unsent_size

    @property
    def flight_size(self) -> int:
        """How many bytes the guest has not acknowledged."""
        return self._sender.flight_size

    def send(self, data: bytes) -> None:
        """Send bytes to the guest; they stay unchanged until they are acknowledged."""
        self._sender.give(data)
        self._push()

    def finish(self) -> None:
        """Send nothing more after what was given to `send`."""
        if not self._sender.finishing:
            self._sender.finishing = True
            self._push()

    def consume(self, count: int) -> None:
        """Take `count` bytes from the inbox; the guest hears of the room."""
        if self._receiver.consume(count):
            self._owe_ack()

    def abort(self) -> None:
        """End the connection at once; the guest sees a reset."""
        if self.state in (OPENING, CLOSED):
            self.refuse()
            return
        if self.state != TIME_WAIT:
            self._emit(RST | ACK, self._sender.next)
        self._close()

    # ---- segments in ------------------------------------------------------

    def ask(self) -> None:
        """Ask the guest for the connection."""
        self.state = SYN_SENT
        self._send_syn(SYN)

    def take_syn(self, segment: Segment) -> None:
        """Begin from the guest's first segment."""
        self._receiver.begin(segment.sequence)
        self._sender.window = segment.window
        options = parse_options(segment.options)
        mss = options.get(OPTION_MSS, b"")
        self._limit_mss(int.from_bytes(mss, "big") if len(mss) == 2 else DEFAULT_MSS)
        scale = options.get(OPTION_SCALE, b"")
        if len(scale) == 1:
            # RFC 7323 section 2.3: more than 14 is taken for 14.
            self._sender.scale = min(scale[0], 14)
            self._receiver.scale = SCALE
        self._has_sack = OPTION_SACK_PERMITTED in options

    def _limit_mss(self, size: int) -> None:
        self._sender.limit(min(size, self.path.mtu - self.path.overhead - HEADER.size))

    def moved(self, mac: bytes) -> None:
        """Hear that the guest has another MAC address: what went to the old one is sent again."""
        self.path.ethernet = mac + self.path.ethernet[6:]
        if self.state != TIME_WAIT:
            self._sender.retransmit_holes(self._table.now)

    def lower_mtu(self, mtu: int) -> None:
        """Take an ICMP error that says how large packets may be (RFC 1191, RFC 8201)."""
        size = mtu - self.path.overhead - HEADER.size
        if MIN_MSS <= size < self.mss and self.state == ESTABLISHED:
            self._limit_mss(size)
            self._sender.retransmit_first(self._table.now)

    def take(self, segment: Segment) -> None:
        """Process a segment (RFC 9293 section 3.10.7)."""
        if self.state == ESTABLISHED and self._take_expected(segment):
            return
        if self.state == OPENING:
            if segment.flags & RST:
                self.lose()
            return
        if self.state == SYN_SENT:
            self._take_answer(segment)
            return
        self._heard = self._table.now
        flags, receiver = segment.flags, self._receiver
        offset = difference(segment.sequence, receiver.next)
        length = segment.length
        window = difference(receiver.edge, receiver.next)
        if offset > window or offset + length < 0 or (length and offset + length <= 0):
            # Old, or beyond the window. A duplicate of the guest's SYN wants its answer again.
            if not flags & RST:
                self._owe_ack()
            return
        if flags & RST:
            # RFC 5961 section 3.2: any but the exact number is asked for again.
            if offset == 0:
                self.lose()
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
            self._sender.push(self._table.now)
        self._arm()
        self._settle()

    def _take_expected(self, segment: Segment) -> bool:
        """Process what nearly every segment is: next in order, with nothing special to it."""
        receiver, sender = self._receiver, self._sender
        size = segment.size
        if (
            segment.sequence != receiver.next
            or segment.flags & ~PSH != ACK
            or segment.options
            or receiver.has_early
            or receiver.ended
            or size > (receiver.edge - receiver.next) & MASK
        ):
            return False
        acked = (segment.ack - sender.unacknowledged) & MASK
        if acked > (sender.next - sender.unacknowledged) & MASK or not (acked or size):
            return False
        table = self._table
        now = self._heard = table.now
        sender.window = segment.window << sender.scale
        if not sender.flight:
            sender.retries = 0
        if size:
            # First, for somebody may wait for it.
            receiver.deliver(segment.buffers, size)
            if self.state != ESTABLISHED:
                return True
            self.ack_due = True
            # RFC 5681 section 4.2: at once for every second full segment.
            if (receiver.next - receiver.acked) & MASK >= 2 * sender.mss:
                table.owe(self)
            else:
                table.delay(self)
        if acked:
            sender.acknowledged(segment.ack, now)
            if not sender.finishing:
                self.endpoint.room()
                if self.state != ESTABLISHED:
                    return True
        if sender.unsent or sender.finishing:
            if self.state == ESTABLISHED:
                sender.push(now)
            self._settle()
        self._arm()
        return True

    def _take_answer(self, segment: Segment) -> None:
        flags, sender = segment.flags, self._sender
        fits = flags & ACK and segment.ack == sender.next
        if flags & ACK and not fits:
            if not flags & RST:
                self._emit(RST, segment.ack)
            return
        if flags & RST:
            if fits:
                self.lose()
            return
        if not flags & SYN or not fits:
            # Both asking at once (RFC 9293 section 3.5, figure 8) does not happen here.
            return
        self.take_syn(segment)
        self.state = ESTABLISHED
        sender.answered(segment.ack)
        self._table.is_up(self)
        self._emit(ACK, sender.next)
        self._heard = self._table.now
        self.endpoint.opened()
        self._arm()

    def _take_ack(self, segment: Segment) -> bool:
        """Process an acknowledgement; False where the segment is not worth more."""
        sender, now = self._sender, self._table.now
        acked = difference(segment.ack, sender.unacknowledged)
        if difference(segment.ack, sender.next) > 0:
            if self.state == SYN_RECEIVED:
                self._emit(RST, segment.ack)
            else:
                self._owe_ack()
            return False
        window = segment.window << sender.scale
        if self.state == SYN_RECEIVED:
            if acked <= 0:
                return False
            self.state = ESTABLISHED
            self._table.is_up(self)
            sender.window = window
            self._acknowledged(segment.ack)
            self.endpoint.opened()
            return self.state == ESTABLISHED
        if segment.options and self._has_sack:
            blocks = parse_options(segment.options).get(OPTION_SACK, b"")
            sender.take_sack(sack_blocks(blocks))
        if acked > 0:
            sender.window = window
            self._acknowledged(segment.ack)
        elif acked == 0:
            sender.repeated(window, not segment.size and not segment.flags & FIN, now)
        return True

    def _acknowledged(self, ack: int) -> None:
        self._sender.acknowledged(ack, self._table.now)
        if self.state == ESTABLISHED and not self._sender.finishing:
            self.endpoint.room()

    def _take_data(self, segment: Segment, offset: int, window: int) -> None:
        receiver = self._receiver
        ended = receiver.ended
        at_once = receiver.take(segment, offset, window)
        if receiver.ended and not ended:
            self.endpoint.ended()
        many = difference(receiver.next, receiver.acked) >= 2 * self._sender.mss
        if many or at_once:
            self._owe_ack()
        else:
            # What is sent meanwhile does it (RFC 9293 section 3.8.6.3).
            self.ack_due = True
            self._table.delay(self)

    def _offer(self, buffers: list[Buffer], size: int) -> int:
        return self.endpoint.receive(buffers, size)

    # ---- segments out -----------------------------------------------------

    def _owe_ack(self) -> None:
        self.ack_due = True
        self._table.owe(self)

    def send_ack(self) -> None:
        """Send the acknowledgement that is due."""
        if self.ack_due and self.state not in (OPENING, SYN_SENT, CLOSED):
            self._emit(ACK, self._sender.next)

    def _send_syn(self, flags: int) -> None:
        self._sender.send_syn(flags, self._table.now)
        self._arm()

    def _emit(self, flags: int, sequence: int, data: memoryview | None = None) -> None:
        receiver, options = self._receiver, b""
        if flags & SYN:
            asking = not flags & ACK
            options = syn_options(
                self.path.mtu - self.path.overhead - HEADER.size,
                SCALE if asking or receiver.scale else None,
                asking or self._has_sack,
            )
            window = receiver.first_window()
        else:
            if self._has_sack and receiver.has_early and not data:
                options = sack_option(receiver.blocks())
            window = receiver.window()
        receiver.acked = receiver.next
        if self.ack_due:
            self.ack_due = False
            self._table.acknowledged(self)
        ack = receiver.next if flags & ACK else 0
        self._table.emit(
            frame(
                *(self.path, self._ports, sequence & MASK, ack, flags, window),
                options=options,
                data=data,
                mss=self._sender.mss,
            )
        )

    def _push(self) -> None:
        if self.state == ESTABLISHED:
            sender = self._sender
            sender.push(self._table.now)
            if sender.flight or sender.unsent:
                self._arm()

    # ---- time -------------------------------------------------------------

    def _arm(self) -> None:
        sender = self._sender
        if self.state == CLOSED:
            return
        if sender.flight:
            deadline = sender.flight[0].at + sender.wait()
        elif sender.unsent and self.state == ESTABLISHED:
            # RFC 9293 section 3.8.6.1: the guest's window is closed; ask now and then.
            deadline = self._table.now + sender.wait()
        elif self.state == TIME_WAIT:
            return
        else:
            deadline = self._heard + _KEEP_ALIVE + sender.retries * _KEEP_ALIVE_INTERVAL
        self.deadline = deadline
        if self.scheduled is None or deadline < self.scheduled:
            self._table.schedule(self, deadline)

    def expire(self) -> None:
        """Do what is due at `deadline`."""
        if self.state == TIME_WAIT:
            self._close()
            return
        if self.state == OPENING:
            return
        sender, now = self._sender, self._table.now
        sender.retries += 1
        if sender.flight:
            opening = self.state in (SYN_SENT, SYN_RECEIVED)
            if sender.retries > (_MAX_SYN_RETRIES if opening else _MAX_RETRIES):
                self.lose()
                return
            sender.timed_out(now)
        elif sender.unsent:
            # The guest answers even where it takes nothing, so that this may go on for long.
            sender.probe(now)
        else:
            if sender.retries > _KEEP_ALIVE_PROBES:
                self.abort()
                self.endpoint.lost()
                return
            self._emit(ACK, sender.next - 1)
        self._arm()

    # ---- the end ----------------------------------------------------------

    def _settle(self) -> None:
        """See whether both directions have ended."""
        sender = self._sender
        over = self._receiver.ended and sender.fin_sent and not sender.flight
        if over and self.state == ESTABLISHED:
            self.state = TIME_WAIT
            self._receiver.close()
            self.deadline = self._table.now + _TIME_WAIT
            self._table.schedule(self, self.deadline)

    def lose(self) -> None:
        """Take the connection for gone, and tell the endpoint."""
        self._close()
        self.endpoint.lost()

    def _close(self) -> None:
        self.state = CLOSED
        self.deadline = None
        self._sender.close()
        self._receiver.close()
        self._table.forget(self)
