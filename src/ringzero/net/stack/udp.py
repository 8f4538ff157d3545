"""UDP (RFC 768)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ringzero.core.frames import (
    ETHERNET_HEADER,
    GSO_UDP_L4,
    Buffer,
    Frame,
    checksum,
)
from ringzero.net.stack.ip import (
    ETHERTYPE_IPV6,
    FRAGMENTED,
    IPV4_HEADER,
    IPV6_HEADER,
    PLAIN4,
    UDP,
    Packet,
    Path,
    pseudo_sum,
)

HEADER = struct.Struct(">HHHH")
_CHECKSUM_OFFSET = 6
# From the length field of the IP header on: lengths, fragment, protocol.
_FRAME4, _FRAME6 = struct.Struct(">HxxHxB14xH"), struct.Struct(">HB37xH")
_LEAST4 = ETHERNET_HEADER + IPV4_HEADER + HEADER.size
_LEAST6 = ETHERNET_HEADER + IPV6_HEADER + HEADER.size


class Datagram:
    """A datagram that came. `piece` is not 0 where several of that size came as one."""

    __slots__ = ("buffers", "destination_port", "piece", "size", "source_port")

    def __init__(self, packet: Packet) -> None:
        """Raises ValueError where there is none in the packet, or it is damaged."""
        head, at = packet.head, packet.at
        if packet.size < HEADER.size or len(head) < at + HEADER.size:
            raise ValueError("a UDP header is cut off")
        self.source_port, self.destination_port, length, value = HEADER.unpack_from(head, at)
        frame = packet.frame
        self.piece = frame.gso_size if frame.gso == GSO_UDP_L4 else 0
        if frame.gso:
            length = packet.size
        if not HEADER.size <= length <= packet.size:
            raise ValueError("a UDP datagram of an impossible length")
        # No checksum is allowed over IPv4 only.
        if not (value == 0 and len(packet.source) == 4) and not packet.checksum_fits():
            raise ValueError("a UDP datagram is damaged")
        self.size = length - HEADER.size
        self.buffers: list[Buffer] = packet.after(HEADER.size)
        if length < packet.size:
            self.buffers = [b"".join(self.buffers)[: self.size]]

    def data(self) -> bytes:
        """Return the payload in one piece."""
        return b"".join(self.buffers)


def payload_of(frame: Frame) -> bytes | None:
    """Return the payload of an ordinary datagram; None where the frame wants a closer look.

    Ordinary are whole packets without options or extensions, whose checksum was left open.
    """
    head, size = frame.head, frame.size - ETHERNET_HEADER
    if not frame.checksum_start or frame.gso or len(head) < _LEAST4:
        return None
    if head[12:15] == PLAIN4:
        total, fragment, protocol, length = _FRAME4.unpack_from(head, 16)
        # A remainder of 0 is the right checksum (`ones_sum`).
        if fragment & FRAGMENTED or int.from_bytes(head[14:34], "big") % 0xFFFF:
            return None
        at = _LEAST4
        if total != size or length != size - IPV4_HEADER:
            return None
    elif head[12:14] == ETHERTYPE_IPV6 and head[14] >> 4 == 6 and len(head) >= _LEAST6:
        total, protocol, length = _FRAME6.unpack_from(head, 18)
        at = _LEAST6
        if total != size - IPV6_HEADER or length != total:
            return None
    else:
        return None
    if protocol != UDP:
        return None
    return b"".join((head[at:], *frame.rest)) if frame.rest else head[at:]


def frames(
    path: Path, source: int, destination: int, data: bytes, identification: int = 0
) -> Iterator[Frame]:
    """Yield what carries one datagram: one frame, or fragments where the MTU wants it."""
    length = HEADER.size + len(data)
    if length + path.overhead <= path.mtu:
        header = path.header(UDP, length) + HEADER.pack(
            source, destination, length, path.partial_sum(UDP, length)
        )
        yield Frame(header + data, (), ETHERNET_HEADER + path.overhead, _CHECKSUM_OFFSET)
        return
    if length > 0xFFFF - (IPV4_HEADER if path.overhead == IPV4_HEADER else 0):
        return
    plain = HEADER.pack(source, destination, length, 0) + data
    value = checksum(plain, pseudo_sum(path.source, path.destination, UDP, length)) or 0xFFFF
    plain = HEADER.pack(source, destination, length, value) + data
    yield from path.fragments(UDP, plain, identification)
