"""Packets of libvirt's remote protocol (RFC 5531 was its model), as bytes and back. No I/O.

A packet is a length of four bytes, which counts itself, a header of six numbers of 32 bits, and a
body, all of it in XDR:

    program, version, procedure, type, serial, status

    CALL      arguments                 from the client, with a new serial
    REPLY     results, or an error      same program, procedure and serial
    MESSAGE   an event's arguments      from the server; keepalive's from both
    STREAM    bytes of a stream         with the serial of the call that opened it; status CONTINUE
              with bytes, CONTINUE without: the end, OK: finish, ERROR: abort, with an error
              from the server and nothing from the client
    STREAM_HOLE  length and flags       a hole of a sparse stream, in the place of bytes

A call or reply WITH_FDS has a number of descriptors before its body, which come beside it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ringzero.doors.libvirt.limits import DESCRIPTORS, FIRST_PACKET, PACKET, STREAM_DATA
from ringzero.doors.libvirt.xdr import Reader, Writer
from ringzero.errors import ProtocolError

LENGTH = struct.Struct(">I")
HEADER = struct.Struct(">IIiiIi")
SMALLEST = LENGTH.size + HEADER.size
# The program by which both sides ask whether the other is there ("keep" in ASCII).
KEEPALIVE_PROGRAM, KEEPALIVE_VERSION = 0x6B65_6570, 1
PING, PONG = 1, 2


class PacketType(enum.IntEnum):
    """What a packet is (virNetMessageType)."""

    CALL = 0
    REPLY = 1
    MESSAGE = 2
    STREAM = 3
    CALL_WITH_FDS = 4
    REPLY_WITH_FDS = 5
    STREAM_HOLE = 6


class PacketStatus(enum.IntEnum):
    """How it stands with a reply or a stream (virNetMessageStatus)."""

    OK = 0
    ERROR = 1
    CONTINUE = 2


_TYPES = {int(kind): kind for kind in PacketType}
_STATUSES = {int(status): status for status in PacketStatus}


class Packet(NamedTuple):
    """One packet; `body` is what follows the header."""

    program: int
    version: int
    procedure: int
    type: PacketType
    serial: int
    status: PacketStatus
    body: bytes = b""

    def encode(self) -> bytes:
        """Return the packet as bytes; raises ProtocolError for one that is too long."""
        size = SMALLEST + len(self.body)
        if size > PACKET:
            raise ProtocolError(f"a packet of {size} bytes", limit=PACKET)
        return LENGTH.pack(size) + HEADER.pack(*self[:6]) + self.body

    def answer(self, body: bytes, *, error: bool = False) -> Packet:
        """Return the reply to this call."""
        status = PacketStatus.ERROR if error else PacketStatus.OK
        return self._replace(type=PacketType.REPLY, status=status, body=body)

    def in_stream(self, body: bytes, status: PacketStatus = PacketStatus.CONTINUE) -> Packet:
        """Return a packet of the stream that this one belongs to or opens."""
        return self._replace(type=PacketType.STREAM, status=status, body=body)


class Decoder:
    """Takes bytes as they come and gives packets; it keeps no more than one packet's bytes.

    `limit` is the length of the longest that is taken; it is small until a client has told who
    it is.
    """

    def __init__(self, limit: int = FIRST_PACKET) -> None:
        self.limit = limit
        self._rest = bytearray()

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished packet are kept."""
        return len(self._rest)

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Yield the packets that `data` completes. Raises ProtocolError; use it no more then."""
        rest = self._rest
        rest += data
        at = 0
        try:
            while len(rest) - at >= LENGTH.size:
                (size,) = LENGTH.unpack_from(rest, at)
                if not SMALLEST <= size <= self.limit:
                    raise ProtocolError(f"a packet of {size} bytes", limit=self.limit)
                end = at + size
                if len(rest) < end:
                    return
                packet = _packet(rest, at + LENGTH.size, end)
                at = end
                yield packet
        finally:
            del rest[:at]


def _packet(data: bytearray, at: int, end: int) -> Packet:
    program, version, procedure, kind, serial, status = HEADER.unpack_from(data, at)
    if kind not in _TYPES:
        raise ProtocolError(f"a packet of unknown type {kind}")
    if status not in _STATUSES:
        raise ProtocolError(f"a packet of unknown status {status}")
    body = bytes(data[at + HEADER.size : end])
    return Packet(program, version, procedure, _TYPES[kind], serial, _STATUSES[status], body)


def keepalive(procedure: int) -> Packet:
    """Return a ping or a pong."""
    kind, status = PacketType.MESSAGE, PacketStatus.OK
    return Packet(KEEPALIVE_PROGRAM, KEEPALIVE_VERSION, procedure, kind, 0, status)


def stream_packets(opener: Packet, data: bytes | memoryview) -> Iterator[Packet]:
    """Yield the packets that carry `data` in the stream that the call `opener` opened."""
    view = memoryview(data)
    for at in range(0, len(view), STREAM_DATA):
        yield opener.in_stream(bytes(view[at : at + STREAM_DATA]))


class Hole(NamedTuple):
    """A hole of a sparse stream: `length` in bytes; flags have no meaning yet."""

    length: int
    flags: int = 0

    @classmethod
    def decode(cls, body: bytes) -> Hole:
        """Return the hole in the body of a STREAM_HOLE packet; raises ProtocolError."""
        data = Reader(body)
        hole = cls(data.int64(), data.uint32())
        data.end()
        if hole.length < 0:
            raise ProtocolError(f"a hole of {hole.length} bytes")
        return hole

    def encode(self) -> bytes:
        """Return the body of the packet."""
        data = Writer()
        data.int64(self.length)
        data.uint32(self.flags)
        return bytes(data.data)


def split_descriptors(body: bytes) -> tuple[int, bytes]:
    """Return how many descriptors come beside a packet WITH_FDS, and the rest of its body."""
    data = Reader(body)
    return data.length(DESCRIPTORS), data.fixed(data.left)
