"""All TCP connections of a network: who is meant, what is new, what is due."""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable

from ringzero.core.frames import Frame
from ringzero.net.stack.faults import Faults
from ringzero.net.stack.ip import Packet, Path, key_of
from ringzero.net.stack.tcp.connection import (
    CLOSED,
    ESTABLISHED,
    TIME_WAIT,
    Connection,
)
from ringzero.net.stack.tcp.endpoint import Endpoint
from ringzero.net.stack.tcp.segment import (
    ACK,
    RST,
    SYN,
    Segment,
    parse,
    parse_frame,
    reset_for,
)

# Connections at once, and those among them that are not up yet. Of the latter the oldest goes.
MAX_CONNECTIONS, MAX_HALF_OPEN = 8192, 1024
# A quarter of Linux's shortest: most answers are given sooner, and a guest that waits for the
# acknowledgement before it sends the rest (RFC 896) hardly feels it.
_ACK_DELAY = 0.01


class Tcp:
    """All connections. `emit` takes frames for the guest.

    `opener` is told of a connection that the guest asks for; it sets `endpoint`, and has
    `accept` or `refuse` called. `number` gives the first sequence number of a connection,
    32 bits that nobody can guess (RFC 6528). A fault while a connection is dealt with ends that
    connection, and is noted in `faults`.
    """

    def __init__(
        self,
        emit: Callable[[Frame], None],
        opener: Callable[[Connection], None],
        number: Callable[[], int],
        faults: Faults | None = None,
    ) -> None:
        self.emit = emit
        self._faults = faults or Faults()
        self._opener = opener
        self._number = number
        self.connections: dict[bytes, Connection] = {}
        self.half_open: OrderedDict[bytes, Connection] = OrderedDict()
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
            if connection.path.destination == address:
                connection.moved(mac)

    def take(self, connection: Connection, frame: Frame) -> bool:
        """Take a frame of `connection` at once if both are ordinary; or else return False.

        Most frames are such: this is `receive` without what the others need.
        """
        if connection.state != ESTABLISHED:
            return False
        segment = parse_frame(frame)
        if segment is None:
            return False
        try:
            connection.take(segment)
        except Exception as fault:
            self.fail(connection, fault)
        return True

    def receive(self, packet: Packet, back: Path | None) -> None:
        """Take a packet of a guest; `back` is the way to it, where it is known to be new."""
        try:
            segment = parse(packet)
        except ValueError:
            return
        if not packet.checksum_fits():
            return
        ports = packet.head[packet.at : packet.at + 4]
        connection = self.connections.get(packet.source + packet.destination + ports)
        anew = segment.flags & (SYN | ACK | RST) == SYN
        if connection is not None and connection.state == TIME_WAIT and anew:
            # RFC 9293 section 3.10.7.4: a new connection may take the place of an old one.
            self.forget(connection)
            connection = None
        if connection is not None:
            try:
                connection.take(segment)
            except Exception as fault:
                self.fail(connection, fault)
        elif back is not None:
            self._begin(packet, segment, back)

    def _begin(self, packet: Packet, segment: Segment, back: Path) -> None:
        flags = segment.flags
        if flags & RST:
            return
        if flags & (SYN | ACK) != SYN or len(self.connections) >= MAX_CONNECTIONS:
            self.emit(reset_for(segment, back))
            return
        ports = segment.destination_port, segment.source_port
        connection = self._add(Connection(self, back, *ports, self._number()))
        connection.request = packet.original()
        try:
            connection.take_syn(segment)
            self._opener(connection)
        except Exception as fault:
            self.fail(connection, fault)

    def connect(self, path: Path, local: int, remote: int, endpoint: Endpoint) -> Connection | None:
        """Ask a guest for a connection to its port `remote`; None where there are too many."""
        key = key_of(path.destination, remote, path.source, local)
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

    def _have(self, connection: Connection, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as fault:
            self.fail(connection, fault)

    def fail(self, connection: Connection, fault: Exception) -> None:
        """End a connection, at both ends, because of a fault of ours."""
        self._faults.note(f"the TCP connection {connection}", fault)
        for act in (connection.abort, connection.drop, connection.lose):
            # What is broken may be so in any of them.
            with contextlib.suppress(Exception):
                act()
        self.forget(connection)

    # ---- the connections' calls -------------------------------------------

    def is_up(self, connection: Connection) -> None:
        """Hear that a connection is not half-open any more."""
        self.half_open.pop(connection.key, None)

    def owe(self, connection: Connection) -> None:
        """Have `send_ack` called at the next `flush`."""
        self.owing[connection] = None

    def delay(self, connection: Connection) -> None:
        """Have `send_ack` called soon, if nothing goes out before."""
        if connection not in self.delayed:
            self.delayed[connection] = self.now + _ACK_DELAY

    def acknowledged(self, connection: Connection) -> None:
        """Hear that an acknowledgement is owed no more."""
        self.owing.pop(connection, None)
        self.delayed.pop(connection, None)

    def forget(self, connection: Connection) -> None:
        """Drop a connection from all tables."""
        if self.connections.get(connection.key) is connection:
            del self.connections[connection.key]
        if self.half_open.get(connection.key) is connection:
            del self.half_open[connection.key]
        self.acknowledged(connection)

    def schedule(self, connection: Connection, deadline: float) -> None:
        """See to it that the connection's `expire` is called at its deadline."""
        if connection.scheduled is None or deadline < connection.scheduled:
            connection.scheduled = deadline
            heapq.heappush(self._timers, (deadline, next(self._order), connection))

    # ---- time -------------------------------------------------------------

    def flush(self) -> None:
        """Send the acknowledgements that are due."""
        while self.owing:
            connection, _ = self.owing.popitem()
            self._have(connection, connection.send_ack)

    def deadline(self) -> float | None:
        """Return when `expire` is to be called next."""
        first = self._timers[0][0] if self._timers else None
        for moment in self.delayed.values():
            return moment if first is None or moment < first else first
        return first

    def expire(self) -> None:
        """Do what is due."""
        while self.delayed:
            late, moment = next(iter(self.delayed.items()))
            if moment > self.now:
                break
            del self.delayed[late]
            self._have(late, late.send_ack)
        timers = self._timers
        while timers and timers[0][0] <= self.now:
            moment, _, connection = heapq.heappop(timers)
            if connection.scheduled != moment:
                continue
            connection.scheduled = None
            if connection.deadline is None or connection.state == CLOSED:
                continue
            if connection.deadline <= self.now:
                self._have(connection, connection.expire)
            else:
                self.schedule(connection, connection.deadline)
