"""One connection as the server sees it: bytes in, calls out; answers in, bytes out. No I/O.

    session = Session()
    session.feed(data)
    for item in session.items():
        if isinstance(item, Call):
            session.reply(item, domain=handle)      # or session.fail(item, error)
    send(session.take())

What needs no server is answered here: pings, unknown programs and procedures, arguments that cannot
be read, calls before the connection is open, and those that a read-only one may not make. A client
that breaks the protocol is a ProtocolError out of `feed` or `items`, and its connection ends.

A call of a procedure that opens a stream opens it when it is answered well; the stream is known by
that call's serial. The client's end is a StreamEnd, which `finish` answers, or a StreamAbort, which
needs no answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from ringzero.doors.libvirt import procedures
from ringzero.doors.libvirt.access import reads_only
from ringzero.doors.libvirt.faults import Error, ErrorCode, ErrorDomain
from ringzero.doors.libvirt.limits import PACKET
from ringzero.doors.libvirt.procedures.notation import Procedure
from ringzero.doors.libvirt.values import DomainHandle
from ringzero.doors.libvirt.wire import (
    KEEPALIVE_PROGRAM,
    PING,
    PONG,
    Decoder,
    Hole,
    Packet,
    PacketStatus,
    PacketType,
    keepalive,
    split_descriptors,
    stream_packets,
)
from ringzero.errors import ProtocolError

# How many calls of one client may be unanswered before no more of its bytes are looked at. A client
# waits for nearly every answer; virt-manager has a thread for each of its polls.
MAX_CALLS = 20
# How many streams and registrations for events one client may have.
MAX_STREAMS = 32
MAX_CALLBACKS = 1024
# An event's packet has this serial, whichever it is.
_EVENT_SERIAL = 1
# What a client asks before it opens the connection.
_BEFORE_OPEN = frozenset(
    (
        *("AUTH_LIST", "AUTH_SASL_INIT", "AUTH_SASL_START", "AUTH_SASL_STEP", "AUTH_POLKIT"),
        *("CONNECT_OPEN", "CONNECT_CLOSE", "CONNECT_SUPPORTS_FEATURE", "CONNECT_SET_IDENTITY"),
    )
)


class Call(NamedTuple):
    """A call that waits for its answer; `descriptors` come beside it."""

    packet: Packet
    procedure: Procedure
    arguments: dict[str, Any]
    descriptors: int = 0

    @property
    def name(self) -> str:
        """The procedure's name."""
        return self.procedure.name


class StreamData(NamedTuple):
    """Bytes that the client wrote into a stream."""

    serial: int
    data: bytes


class StreamHole(NamedTuple):
    """So many bytes of nothing that the client wrote into a stream."""

    serial: int
    length: int


class StreamEnd(NamedTuple):
    """The client has written, or read, all of a stream, and waits for `finish` or `abort`."""

    serial: int


class StreamAbort(NamedTuple):
    """The client wants no more of a stream; it is gone."""

    serial: int


class Callback(NamedTuple):
    """A registration for events of a kind ("domain", "network", ...), of one object or of all."""

    kind: str
    event: int
    handle: Any


Item = Call | StreamData | StreamHole | StreamEnd | StreamAbort


class Session:
    """See the module. `read_only` connections change nothing."""

    def __init__(self, *, read_only: bool = False) -> None:
        self.read_only = read_only
        self.opened = False
        self.callbacks: dict[int, Callback] = {}
        self._decoder = Decoder()
        self._packets: deque[Packet] = deque()
        self._calls: set[int] = set()
        self._streams: dict[int, Packet] = {}
        self._next_callback = 1
        self._out = bytearray()

    # ---- in -----------------------------------------------------------------

    @property
    def wants_data(self) -> bool:
        """Whether more may be fed: not while packets wait for answers to calls before them."""
        return not self._packets

    @property
    def streams(self) -> tuple[int, ...]:
        """The serials of the streams that are open."""
        return tuple(self._streams)

    def feed(self, data: bytes) -> None:
        """Take bytes of the client's; raises ProtocolError."""
        self._packets += self._decoder.feed(data)

    def items(self) -> Iterator[Item]:
        """Yield what the client asks and writes, as long as not too many calls are unanswered."""
        while self._packets and len(self._calls) < MAX_CALLS:
            item = self._item(self._packets.popleft())
            if item is not None:
                yield item

    def _item(self, packet: Packet) -> Item | None:
        if packet.program == KEEPALIVE_PROGRAM:
            if packet.procedure == PING:
                self._send(keepalive(PONG))
            elif packet.procedure != PONG:
                raise ProtocolError(f"a keepalive packet of unknown kind {packet.procedure}")
            return None
        if packet.type in (PacketType.STREAM, PacketType.STREAM_HOLE):
            return self._stream_item(packet)
        if packet.type not in (PacketType.CALL, PacketType.CALL_WITH_FDS):
            raise ProtocolError(f"a packet that only a server sends: {packet.type.name}")
        return self._call(packet)

    def _call(self, packet: Packet) -> Call | None:
        serial = packet.serial
        if serial in self._calls or serial in self._streams:
            raise ProtocolError(f"two calls with the serial {serial}")
        program = procedures.program(packet.program)
        if program is None or packet.version != program.version:
            return self._refuse(
                packet,
                Error(
                    ErrorCode.RPC,
                    ErrorDomain.RPC,
                    f"no program {packet.program:#x} of version {packet.version} here",
                ),
            )
        procedure = program.procedures.get(packet.procedure)
        if procedure is None or procedure.event:
            return self._refuse(packet, unsupported(f"procedure {packet.procedure}"))
        body, descriptors = packet.body, 0
        try:
            if packet.type is PacketType.CALL_WITH_FDS:
                descriptors, body = split_descriptors(body)
            arguments = procedure.arguments.decode(body)
        except ProtocolError as fault:
            text = f"{procedure.name}: unreadable arguments: {fault.message}"
            return self._refuse(packet, Error(ErrorCode.RPC, ErrorDomain.RPC, text))
        refusal = self._refusal(packet.program, procedure, arguments)
        if refusal is not None:
            return self._refuse(packet, refusal)
        self._calls.add(serial)
        return Call(packet, procedure, arguments, descriptors)

    def _refusal(
        self, program: int, procedure: Procedure, arguments: dict[str, Any]
    ) -> Error | None:
        """Return why a call is not allowed, or None."""
        if not self.opened and procedure.name not in _BEFORE_OPEN:
            return Error(ErrorCode.INTERNAL_ERROR, ErrorDomain.RPC, "the connection is not open")
        if self.read_only and not reads_only(program, procedure, arguments):
            return Error(
                ErrorCode.OPERATION_DENIED,
                ErrorDomain.REMOTE,
                f"operation {procedure.name} forbidden for read only access",
            )
        if procedure.stream is not None and len(self._streams) >= MAX_STREAMS:
            text = f"{MAX_STREAMS} streams are open; one of them has to end first"
            return Error(ErrorCode.RESOURCE_BUSY, ErrorDomain.STREAMS, text)
        return None

    def _refuse(self, packet: Packet, error: Error) -> Call | None:
        """Answer what is not to be a call."""
        self._send(packet.answer(error.encode(), error=True))
        return None

    def _stream_item(self, packet: Packet) -> Item | None:
        opener = self._streams.get(packet.serial)
        if opener is None or opener.procedure != packet.procedure:
            # Of a stream that the server has ended, which the client does not know yet.
            return None
        serial = packet.serial
        if packet.status is PacketStatus.ERROR:
            self.finish(serial)
            return StreamAbort(serial)
        if packet.status is PacketStatus.OK:
            return StreamEnd(serial)
        if packet.type is PacketType.STREAM_HOLE:
            return StreamHole(serial, Hole.decode(packet.body).length)
        return StreamData(serial, packet.body)

    # ---- out ----------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many bytes `take` would give; who lets them grow lets memory grow."""
        return len(self._out)

    def take(self) -> bytes:
        """Return the bytes for the client, which are then no longer here."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def reply(self, call: Call, /, **results: Any) -> None:
        """Answer a call; raises ProtocolError, and answers nothing, for results without a form."""
        body = call.procedure.results.encode(results)
        self._answered(call)
        if call.name == "CONNECT_OPEN":
            # Whoever has come so far may send XML.
            self.opened, self._decoder.limit = True, PACKET
        if call.procedure.stream is not None:
            self._streams[call.packet.serial] = call.packet
        self._send(call.packet.answer(body))

    def fail(self, call: Call, error: Error) -> None:
        """Answer a call with an error."""
        self._answered(call)
        self._send(call.packet.answer(error.encode(), error=True))

    def _answered(self, call: Call) -> None:
        self._calls.remove(call.packet.serial)

    def _send(self, packet: Packet) -> None:
        self._out += packet.encode()

    def ping(self) -> None:
        """Ask the client whether it is there; it answers with any packet."""
        self._send(keepalive(PING))

    def write(self, serial: int, data: bytes | memoryview) -> None:
        """Write into a stream; nothing happens to one that is gone."""
        opener = self._streams.get(serial)
        if opener is not None:
            for packet in stream_packets(opener, data):
                self._send(packet)

    def write_hole(self, serial: int, length: int) -> None:
        """Write `length` bytes of nothing into a stream of a client that asked for holes."""
        opener = self._streams.get(serial)
        if opener is not None:
            hole = opener.in_stream(Hole(length).encode())
            self._send(hole._replace(type=PacketType.STREAM_HOLE))

    def write_end(self, serial: int) -> None:
        """Tell that all of a stream has been written; the client's StreamEnd follows."""
        opener = self._streams.get(serial)
        if opener is not None:
            self._send(opener.in_stream(b""))

    def finish(self, serial: int) -> None:
        """End a stream well."""
        opener = self._streams.pop(serial, None)
        if opener is not None:
            self._send(opener.in_stream(b"", PacketStatus.OK))

    def abort(self, serial: int, error: Error) -> None:
        """End a stream with an error."""
        opener = self._streams.pop(serial, None)
        if opener is not None:
            self._send(opener.in_stream(error.encode(), PacketStatus.ERROR))

    # ---- events ---------------------------------------------------------------

    def register(self, kind: str, event: int, handle: Any = None) -> int:
        """Note that the client wants an event; return the number of that registration.

        Raises ProtocolError when it has too many.
        """
        if len(self.callbacks) >= MAX_CALLBACKS:
            raise ProtocolError(f"{MAX_CALLBACKS} registrations for events", limit=MAX_CALLBACKS)
        number = self._next_callback
        self._next_callback += 1
        self.callbacks[number] = Callback(kind, event, handle)
        return number

    def deregister(self, number: int) -> Callback | None:
        """Forget a registration, and return what it was."""
        return self.callbacks.pop(number, None)

    def interested(self, kind: str, event: int, handle: Any) -> Iterator[int]:
        """Yield the registrations for an event that happened to an object.

        A machine is known by its UUID: its number changes.
        """
        for number, callback in self.callbacks.items():
            if (callback.kind, callback.event) == (kind, event) and (
                callback.handle is None or _same(callback.handle, handle)
            ):
                yield number

    def event(self, name: str, /, **arguments: Any) -> None:
        """Tell the client an event by the name of its procedure."""
        procedure = procedures.remote().by_name[name]
        self._send(
            Packet(
                procedures.REMOTE_PROGRAM,
                procedures.VERSION,
                procedure.number,
                PacketType.MESSAGE,
                _EVENT_SERIAL,
                PacketStatus.OK,
                procedure.arguments.encode(arguments),
            )
        )


def unsupported(what: str) -> Error:
    """Return the error for what nobody here does; clients go another way then, where they can."""
    text = f"this function is not supported by the connection driver: {what}"
    return Error(ErrorCode.NO_SUPPORT, ErrorDomain.REMOTE, text)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, DomainHandle) and isinstance(other, DomainHandle):
        return one.uuid == other.uuid
    return bool(one == other)
