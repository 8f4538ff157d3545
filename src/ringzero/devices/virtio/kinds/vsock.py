"""virtio socket device (virtio 1.2 section 5.10): streams of guest and host, without a network.

The device keeps ports, flow control and shutdown; who is at the host's end of
a stream is for a `VsockHost`. Connections belong to the machine that made
them: a machine that is restored, or a clone, has none, and is told so by the
event TRANSPORT_RESET, after which Linux also reads its address again.
"""

from __future__ import annotations

import struct
from typing import Protocol

from ringzero.devices.virtio.device import VIRTIO_DEVICES, VirtioDevice
from ringzero.devices.virtio.queue import Chain, QueueError, Virtqueue
from ringzero.errors import StateError
from ringzero.records import record

RECEIVE, TRANSMIT, EVENT = 0, 1, 2
QUEUE_SIZE = 128
FEATURE_STREAM = 1
# Section 5.10.6: source and destination CID, source and destination port, length, type,
# operation, flags, buffer size, bytes taken.
HEADER = struct.Struct("<QQIIIHHIII")
STREAM = 1
REQUEST, RESPONSE, RESET, SHUTDOWN, DATA, CREDIT_UPDATE, CREDIT_REQUEST = 1, 2, 3, 4, 5, 6, 7
# Flags of SHUTDOWN: the sender takes no more, sends no more.
NO_RECEIVE, NO_SEND = 1, 2
TRANSPORT_RESET = struct.pack("<I", 0)
# Section 5.10.4: 0, 1 and 2 (the host), and all ones in the lower half, are nobody's.
HOST_CID, FIRST_CID, LAST_CID = 2, 3, 0xFFFF_FFFE
# Bytes from the guest that its host's end has not taken yet; what Linux has too.
BUFFER_SIZE = 256 * 1024
# Bytes from the host that wait for the guest's buffers, or its leave, before `push` takes no more.
BACKLOG_SIZE = 64 * 1024
# The most that one packet holds; as Linux.
MAX_PACKET = 64 * 1024
# Streams at once, each of which may hold BUFFER_SIZE + BACKLOG_SIZE.
MAX_CONNECTIONS = 256
# Resets that wait for buffers before the device stops to take packets, which may need more.
MAX_RESETS = 256
# Where the ports of the host's ends begin; below are those that services have.
FIRST_HOST_PORT = 1 << 30
MASK_32 = 0xFFFF_FFFF
_HALF = 1 << 31


class Endpoint(Protocol):
    """The host's end of one stream. The device calls, holding its lock, and from any thread.

    None of these may wait, or call the device back.
    """

    def opened(self) -> None:
        """Hear that the guest took the connection which the host asked for."""
        ...

    def receive(self, data: bytes) -> None:
        """Take bytes from the guest; `Connection.took` says when they have found room."""
        ...

    def shut(self, flags: int) -> None:
        """Hear that the guest takes no more (NO_RECEIVE), sends no more (NO_SEND), or both."""
        ...

    def room(self) -> None:
        """Hear that `Connection.push` takes bytes again."""
        ...

    def closed(self) -> None:
        """Hear that the stream is over. Bytes that were received before are to be delivered."""
        ...


class VsockHost(Protocol):
    """Who answers when the guest connects to a port of the host; the rules of Endpoint hold."""

    def requested(self, connection: Connection) -> Endpoint | None:
        """Return who will `accept` or `close` the connection to its `host_port`; None refuses."""
        ...


class Connection:
    """One stream, the device's side. The methods may be called from any thread."""

    def __init__(
        self, device: Vsock, guest_port: int, host_port: int, *, asked_by_host: bool
    ) -> None:
        self._device = device
        self.asked_by_host = asked_by_host
        self.guest_port = guest_port
        self.host_port = host_port
        self.endpoint: Endpoint
        # What opens the stream and is still to be sent: REQUEST, RESPONSE, or 0.
        self.opening = REQUEST if asked_by_host else 0
        self.open = False
        self.gone = False
        self.backlog = bytearray()
        # Whether `push` has refused bytes since the endpoint was last told of room.
        self.pressed = False
        # Flags of SHUTDOWN: the guest's, the host's, and what the guest was told of these.
        self.guest_shut = self.host_shut = self.told_shut = 0
        # To the guest: bytes sent, bytes that it has taken, room that it has (modulo 2^32).
        self.sent = self.peer_taken = self.peer_buffer = 0
        # From the guest: bytes received, taken, and how many of these it knows of.
        self.received = self.taken = self.told_taken = 0
        self.owes_credit = False

    # ---- the endpoint's calls ---------------------------------------------

    def accept(self) -> None:
        """Take a connection that the guest asked for."""
        with self._device.lock:
            if not self.gone and not self.open:
                self.open, self.opening = True, RESPONSE
                self._device.wants_to_send(self)

    def push(self, data: bytes) -> int:
        """Offer bytes to the guest; return how many were taken, all of them if nobody listens."""
        with self._device.lock:
            if self.gone or self.guest_shut & NO_RECEIVE:
                return len(data)
            count = min(len(data), BACKLOG_SIZE - len(self.backlog))
            self.pressed = count < len(data)
            self.backlog += data[:count]
            self._device.wants_to_send(self)
            return count

    def took(self, count: int) -> None:
        """Say that `count` bytes more of what was received have been passed on."""
        with self._device.lock:
            if not self.gone:
                self.take(min(count, self.received - self.taken))
                if self.owes_credit:
                    self._device.wants_to_send(self)

    def shut(self, flags: int) -> None:
        """Take no more (NO_RECEIVE) or send no more (NO_SEND), once all is sent that waits."""
        with self._device.lock:
            if not self.gone:
                self.host_shut |= flags & (NO_RECEIVE | NO_SEND)
                self._device.wants_to_send(self)

    def close(self) -> None:
        """End the stream at once, or refuse it; what waits for the guest is lost."""
        with self._device.lock:
            if not self.gone:
                self._device.drop(self)

    # ---- the device's; it holds its lock ----------------------------------

    @property
    def credit(self) -> int:
        """How many bytes the guest takes now (section 5.10.6.3)."""
        return max(0, self.peer_buffer - (self.sent - self.peer_taken & MASK_32))

    @property
    def closing(self) -> bool:
        """Whether the host has done with it, and only the guest's answer is missing."""
        return self.told_shut == NO_RECEIVE | NO_SEND

    def take(self, count: int) -> None:
        """Count bytes as passed on; the guest hears of it before half of its room is used up."""
        self.taken += count
        if self.taken - self.told_taken >= BUFFER_SIZE // 2:
            self.owes_credit = True

    def hear_credit(self, buffer: int, taken: int) -> bool:
        """Take what the guest says of its room; False when it cannot be."""
        more = taken - self.peer_taken & MASK_32
        # Packets may overtake each other on their way into Linux's queue: older news are none.
        if more < _HALF:
            if more > self.sent - self.peer_taken & MASK_32:
                return False
            self.peer_taken = taken
        self.peer_buffer = buffer
        return True

    def has_packet(self) -> bool:
        """Whether there is something to send now."""
        if self.opening:
            return True
        if not self.open:
            return False
        ready = self.credit > 0 if self.backlog else self.host_shut != self.told_shut
        return ready or self.owes_credit

    def packet(self, room: int) -> bytes:
        """Return the next packet, at most `room` bytes; there is one (`has_packet`)."""
        if self.opening:
            operation, self.opening = self.opening, 0
            return self._pack(operation)
        if self.backlog and self.credit:
            # A buffer without room for a byte of data gets a packet without one.
            count = min(room - HEADER.size, self.credit, len(self.backlog), MAX_PACKET)
            data = bytes(self.backlog[:count])
            del self.backlog[:count]
            self.sent += count
            return self._pack(DATA, data=data)
        if not self.backlog and self.host_shut != self.told_shut:
            self.told_shut = self.host_shut
            return self._pack(SHUTDOWN, flags=self.host_shut)
        return self._pack(CREDIT_UPDATE)

    def _pack(self, operation: int, flags: int = 0, data: bytes = b"") -> bytes:
        self.owes_credit = False
        self.told_taken = self.taken
        header = HEADER.pack(
            HOST_CID, self._device.cid, self.host_port, self.guest_port, len(data), STREAM,
            operation, flags, BUFFER_SIZE, self.taken & MASK_32,
        )  # fmt: skip
        return header + data


@record
class Packet:
    """A header of the guest's."""

    source: int
    destination: int
    guest_port: int
    host_port: int
    length: int
    type: int
    operation: int
    flags: int
    buffer: int
    taken: int


@record
class VsockState:
    """The guest's address, and what it has been told that it has not yet dealt with.

    `awaited` is the driver's index in the event queue from which on it has
    dealt with all events, or None. Connections are not part of the state.
    """

    cid: int
    awaited: int | None


@VIRTIO_DEVICES.register("vsock")
class Vsock(VirtioDevice[VsockState]):
    """A socket device for the guest `cid`; without a `host`, nobody answers the guest."""

    device_id = 19
    state_type = VsockState

    def __init__(self, cid: int, host: VsockHost | None = None) -> None:
        super().__init__(queue_sizes=(QUEUE_SIZE,) * 3, features=FEATURE_STREAM)
        self.cid = cid
        self._host = host
        # By the ports of guest and host.
        self._connections: dict[tuple[int, int], Connection] = {}
        # Those that may have something to send, in turn.
        self._senders: dict[Connection, None] = {}
        # Of resets to be sent, each once: CIDs of source and destination, their ports.
        self._resets: dict[tuple[int, int, int, int], None] = {}
        self._next_port = FIRST_HOST_PORT
        # Whether the guest is still to be told that all connections are gone.
        self._owes_event = False
        self._awaited: int | None = None

    @property
    def connections(self) -> int:
        """How many streams there are."""
        return len(self._connections)

    def connect(self, guest_port: int, endpoint: Endpoint) -> Connection | None:
        """Ask the guest for a connection to a port of its own, 32 bits; from any thread.

        The endpoint hears that it is `opened` or `closed`. None: the guest's driver is
        not up, or there are too many streams.
        """
        with self.lock:
            if not self.accepted or not self._make_room():
                return None
            port = self._free_port(guest_port)
            connection = Connection(self, guest_port, port, asked_by_host=True)
            self._add(connection, endpoint)
            self.wants_to_send(connection)
            return connection

    def renew(self, cid: int) -> None:
        """Give a copied machine another address, before it runs."""
        with self.lock:
            self.cid = cid

    # ---- the transport's calls --------------------------------------------

    def config(self) -> bytes:
        return struct.pack("<Q", self.cid)

    def reset(self) -> None:
        self._drop_all()
        self._owes_event, self._awaited = False, None

    def close(self) -> None:
        with self.lock:
            self._drop_all()

    def notify(self, index: int) -> None:
        if index == EVENT:
            self._tell_events()
        # Packets may have waited for buffers in which to answer, and be answered now.
        self._feed()
        self._drain()
        self._feed()

    # ---- from the guest ---------------------------------------------------

    def _drain(self) -> None:
        queue = self.queues[TRANSMIT]
        if not queue.ready or not self._settled or len(self._resets) >= MAX_RESETS:
            return
        for chain in queue.requests():
            self._take(chain)
            queue.push(chain, 0)
            if len(self._resets) >= MAX_RESETS:
                break
        self.complete(queue)

    def _take(self, chain: Chain) -> None:
        head = chain.gather(HEADER.size)
        if len(head) < HEADER.size:
            return
        packet = Packet(*HEADER.unpack(head))
        # What comes from another address was sent before the guest had this one, or is a lie.
        ours = packet.source == self.cid and packet.destination == HOST_CID
        ports = packet.guest_port, packet.host_port
        connection = self._connections.get(ports) if ours else None
        sound = (
            ours
            and packet.type == STREAM
            and packet.length <= chain.readable_size - HEADER.size
            and (packet.operation == DATA or packet.length == 0)
        )
        if packet.operation == RESET:
            if connection is not None and sound:
                self._forget(connection)
        elif not sound:
            self._refuse(packet, connection)
        elif connection is None:
            if packet.operation != REQUEST or not self._request(packet):
                self._refuse(packet, None)
        elif not connection.hear_credit(packet.buffer, packet.taken) or not self._act(
            connection, packet, chain
        ):
            self._refuse(packet, connection)
        elif not connection.gone and connection.has_packet():
            self._senders[connection] = None

    def _request(self, packet: Packet) -> bool:
        """Have the host decide on the guest's wish; False where it is refused at once."""
        if self._host is None or not self._make_room():
            return False
        connection = Connection(self, packet.guest_port, packet.host_port, asked_by_host=False)
        connection.hear_credit(packet.buffer, 0)
        endpoint = self._host.requested(connection)
        if endpoint is None:
            return False
        self._add(connection, endpoint)
        return True

    def _act(self, connection: Connection, packet: Packet, chain: Chain) -> bool:
        """Do what a packet of a known stream says; False when it may not say so."""
        operation = packet.operation
        if operation == RESPONSE:
            # The answer to a request, which has been sent, and the first one.
            if connection.open or connection.opening or not connection.asked_by_host:
                return False
            connection.open = True
            connection.endpoint.opened()
            return True
        if operation == CREDIT_UPDATE:
            return True
        if operation == CREDIT_REQUEST:
            connection.owes_credit = True
            return True
        if operation == SHUTDOWN:
            return self._shut(connection, packet.flags)
        if operation == DATA and connection.open and not connection.guest_shut & NO_SEND:
            return self._receive(connection, packet.length, chain)
        return False

    def _receive(self, connection: Connection, length: int, chain: Chain) -> bool:
        if connection.received - connection.taken + length > BUFFER_SIZE:
            return False
        connection.received += length
        if connection.host_shut & NO_RECEIVE:
            connection.take(length)
        elif length:
            connection.endpoint.receive(chain.gather(HEADER.size + length)[HEADER.size :])
        return True

    def _shut(self, connection: Connection, flags: int) -> bool:
        if flags & ~(NO_RECEIVE | NO_SEND):
            return False
        connection.guest_shut |= flags
        if connection.guest_shut & NO_RECEIVE:
            connection.backlog.clear()
        if connection.guest_shut == NO_RECEIVE | NO_SEND:
            # Nothing can follow: the guest waits for this reset to let go of the port.
            return False
        connection.endpoint.shut(flags)
        return True

    def _refuse(self, packet: Packet, connection: Connection | None) -> None:
        """Answer with a reset, which ends the stream if there is one."""
        source, to = packet.destination, packet.source
        self._resets[source, to, packet.host_port, packet.guest_port] = None
        if connection is not None:
            self._forget(connection)

    # ---- to the guest -----------------------------------------------------

    def wants_to_send(self, connection: Connection) -> None:
        """Hear that a connection may have a packet; the lock is held."""
        if connection.has_packet():
            self._senders[connection] = None
            self.transport.serve(RECEIVE)

    def drop(self, connection: Connection) -> None:
        """End a stream from the host's side; the lock is held."""
        told = connection.open or connection.opening != REQUEST
        self._forget(connection)
        if told:
            self._resets[HOST_CID, self.cid, connection.host_port, connection.guest_port] = None
            self.transport.serve(RECEIVE)

    @property
    def _settled(self) -> bool:
        """Whether the guest knows which connections there are."""
        return not self._owes_event and self._awaited is None

    def _feed(self) -> None:
        """Move packets into the guest's buffers."""
        queue = self.queues[RECEIVE]
        if not queue.ready or not self._settled:
            return
        while self._resets or self._senders:
            if not self._resets and not next(iter(self._senders)).has_packet():
                del self._senders[next(iter(self._senders))]
                continue
            chain = queue.pop()
            if chain is None:
                if queue.rearm():
                    continue
                break
            if chain.writable_size < HEADER.size:
                raise QueueError("a buffer for packets that holds no header")
            queue.push(chain, chain.scatter(self._next_packet(chain.writable_size)))
        self.complete(queue)

    def _next_packet(self, room: int) -> bytes:
        if self._resets:
            addresses = next(iter(self._resets))
            del self._resets[addresses]
            return HEADER.pack(*addresses, 0, STREAM, RESET, 0, 0, 0)
        connection = next(iter(self._senders))
        del self._senders[connection]
        packet = connection.packet(room)
        if connection.has_packet():
            self._senders[connection] = None
        if connection.pressed and len(connection.backlog) < BACKLOG_SIZE:
            connection.pressed = False
            connection.endpoint.room()
        return packet

    def _tell_events(self) -> None:
        """Tell the driver of the reset; or see that it has dealt with it, for it gives back."""
        queue = self.queues[EVENT]
        offered = queue.offered
        if self._owes_event:
            chain = self._event_buffer(queue)
            if chain is None:
                return
            queue.push(chain, chain.scatter(TRANSPORT_RESET))
            last = offered if self._awaited is None else self._awaited
            self._owes_event, self._awaited = False, last + 1 & 0xFFFF
            queue.request_notice()
            self.complete(queue)
        elif self._awaited is not None and (offered - self._awaited) & 0xFFFF < 0x8000:
            self._awaited = None
        queue.request_notice()

    def _event_buffer(self, queue: Virtqueue) -> Chain | None:
        chain = queue.pop()
        if chain is None and queue.rearm():
            chain = queue.pop()
        return chain

    # ---- the table of streams ---------------------------------------------

    def _add(self, connection: Connection, endpoint: Endpoint) -> None:
        connection.endpoint = endpoint
        self._connections[connection.guest_port, connection.host_port] = connection

    def _forget(self, connection: Connection) -> None:
        connection.gone = True
        connection.backlog.clear()
        self._senders.pop(connection, None)
        del self._connections[connection.guest_port, connection.host_port]
        connection.endpoint.closed()

    def _make_room(self) -> bool:
        """Return whether there may be one more; one that only the guest keeps makes place."""
        if len(self._connections) < MAX_CONNECTIONS:
            return True
        closing = next((c for c in self._connections.values() if c.closing), None)
        if closing is None:
            return False
        self.drop(closing)
        return True

    def _free_port(self, guest_port: int) -> int:
        while True:
            port = self._next_port
            self._next_port = FIRST_HOST_PORT | port + 1 & FIRST_HOST_PORT - 1
            if (guest_port, port) not in self._connections:
                return port

    def _drop_all(self) -> None:
        for connection in list(self._connections.values()):
            self._forget(connection)
        self._senders.clear()
        self._resets.clear()

    # ---- state ------------------------------------------------------------

    def save(self) -> VsockState:
        with self.lock:
            return VsockState(self.cid, self._awaited)

    def restore(self, state: VsockState) -> None:
        if not FIRST_CID <= state.cid <= LAST_CID:
            raise StateError("virtio socket: an address that no guest has", seen=state.cid)
        with self.lock:
            self._drop_all()
            self.cid = state.cid
            self._awaited = None if state.awaited is None else state.awaited & 0xFFFF
            # A driver that is not up yet has no connections.
            self._owes_event = bool(self.accepted)
            if not self.accepted:
                self._awaited = None
