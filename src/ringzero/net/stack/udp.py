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
from ringzero.net.stack.ip import IPV4_HEADER, UDP, Packet, Path, pseudo_sum

HEADER = struct.Struct(">HHHH")
_CHECKSUM_OFFSET = 6


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
