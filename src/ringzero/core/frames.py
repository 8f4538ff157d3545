"""Ethernet frames with the work that is left to do on them: checksums and segmentation.

A guest hands its network one frame of up to 64 KiB of payload and leaves the
checksum open (virtio 1.2 section 5.1.6, "offloads"). Whoever passes it on to
a place that wants ordinary frames finishes it here (`plain`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

Buffer = bytes | memoryview

# virtio 1.2 section 5.1.6, gso_type: what a frame is to be cut into.
GSO_NONE, GSO_TCP4, GSO_UDP, GSO_TCP6, GSO_UDP_L4 = 0, 1, 3, 4, 5
GSO_ECN = 0x80
# IEEE 802.3: two addresses and the type.
ETHERNET_HEADER = 14
# The largest frame with offloads: an IP packet of 64 KiB behind its Ethernet header and a VLAN tag.
LARGEST_FRAME = ETHERNET_HEADER + 4 + 65535
# All headers of a frame lie in its first bytes: Ethernet with two tags, IPv6 with extensions, TCP.
HEADERS_SIZE = 256

_IPV4, _IPV6, _TCP, _UDP = 0x0800, 0x86DD, 6, 17
_FIN_PSH, _CWR = 0x09, 0x80
_MORE_FRAGMENTS = 0x2000


class Frame:
    """One frame: `head` begins it and holds all its headers, `rest` follows.

    `checksum_start` is where the bytes begin whose Internet checksum belongs
    at `checksum_start + checksum_offset`; there the sum of the pseudo header
    stands meanwhile. 0 means that nothing is left open. `gso` says into what
    the payload is to be cut, in pieces of `gso_size` bytes.
    """

    __slots__ = ("checksum_offset", "checksum_start", "gso", "gso_size", "head", "rest", "size")

    def __init__(
        self,
        head: bytes,
        rest: Sequence[Buffer] = (),
        checksum_start: int = 0,
        checksum_offset: int = 0,
        gso: int = GSO_NONE,
        gso_size: int = 0,
    ) -> None:
        self.head = head
        self.rest = rest
        self.size = len(head) + sum(map(len, rest))
        self.checksum_start = checksum_start
        self.checksum_offset = checksum_offset
        self.gso = gso
        self.gso_size = gso_size

    def data(self) -> bytes:
        """Return the whole frame in one piece, as it stands."""
        return b"".join((self.head, *self.rest)) if self.rest else self.head

    def kept(self) -> Frame:
        """Return a frame whose bytes are its own: views may be of a guest's memory."""
        if not self.rest:
            return self
        return Frame(
            *(self.data(), (), self.checksum_start, self.checksum_offset),
            *(self.gso, self.gso_size),
        )


def ones_sum(data: Buffer) -> int:
    """Return the one's complement sum of `data` as 16-bit words (RFC 1071), 0 to 0xFFFF.

    2**16 is 1 modulo 0xFFFF, so that the sum is a remainder: one division in C.
    """
    number = int.from_bytes(data, "big")
    if len(data) & 1:
        number <<= 8
    return number % 0xFFFF or (0xFFFF if number else 0)


def checksum(data: Buffer, start: int = 0) -> int:
    """Return the Internet checksum of `data`, to whose sum `start` is added."""
    total = ones_sum(data) + start
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def plain(frame: Frame) -> list[bytes]:
    """Return `frame` as ordinary frames: cut, with all checksums. None where it makes no sense."""
    if frame.gso:
        return list(_cut(frame))
    data = frame.data()
    if not frame.checksum_start:
        return [data]
    start, place = frame.checksum_start, frame.checksum_start + frame.checksum_offset
    if place + 2 > len(data):
        return []
    # 0 means "none" to UDP; 0xFFFF is the same number to everybody else.
    value = checksum(data[start:]) or 0xFFFF
    return [b"".join((data[:place], value.to_bytes(2, "big"), data[place + 2 :]))]


def _cut(frame: Frame) -> Iterator[bytes]:
    data = frame.data()
    ip, kind = ETHERNET_HEADER, int.from_bytes(data[12:14], "big")
    if kind == 0x8100:
        ip, kind = ip + 4, int.from_bytes(data[16:18], "big")
    transport, size = frame.checksum_start, frame.gso_size
    if kind == _IPV4 and len(data) >= ip + 20:
        protocol, shortest = data[ip + 9], ip + 20
    elif kind == _IPV6 and len(data) >= ip + 40:
        protocol, shortest = (_TCP if frame.gso & ~GSO_ECN == GSO_TCP6 else _UDP), ip + 40
    else:
        return
    if size <= 0 or not shortest <= transport <= len(data) - 8:
        return
    if frame.gso & ~GSO_ECN == GSO_UDP:
        if kind == _IPV4:
            yield from _fragments(frame, data, ip, transport)
        return
    length = 8
    if protocol == _TCP:
        if len(data) < transport + 20:
            return
        length = (data[transport + 12] >> 4) * 4
    payload = transport + length
    if payload > len(data) or length < 8:
        return
    addresses = data[ip + 12 : ip + 20] if kind == _IPV4 else data[ip + 8 : ip + 40]
    identification = int.from_bytes(data[ip + 4 : ip + 6], "big")
    for number, at in enumerate(range(payload, max(len(data), payload + 1), size)):
        piece = data[at : at + size]
        header = bytearray(data[:payload])
        upper = length + len(piece)
        if kind == _IPV4:
            struct.pack_into(">H", header, ip + 2, transport - ip + upper)
            struct.pack_into(">H", header, ip + 4, identification + number & 0xFFFF)
            _seal_ipv4(header, ip, transport)
        else:
            struct.pack_into(">H", header, ip + 4, transport - ip - 40 + upper)
        if protocol == _TCP:
            sequence = int.from_bytes(data[transport + 4 : transport + 8], "big") + at - payload
            struct.pack_into(">I", header, transport + 4, sequence & 0xFFFFFFFF)
            if at + size < len(data):
                header[transport + 13] &= ~_FIN_PSH
            if number:
                header[transport + 13] &= ~_CWR
        else:
            struct.pack_into(">H", header, transport + 4, upper)
        place = transport + (16 if protocol == _TCP else 6)
        header[place : place + 2] = b"\0\0"
        start = ones_sum(addresses) + protocol + upper
        value = checksum(bytes(header[transport:]) + piece, start) or 0xFFFF
        struct.pack_into(">H", header, place, value)
        yield bytes(header) + piece


def _fragments(frame: Frame, data: bytes, ip: int, transport: int) -> Iterator[bytes]:
    """Cut one large UDP datagram over IPv4 into IP fragments (RFC 791 section 3.2)."""
    whole = bytearray(data)
    place = transport + 6
    whole[place : place + 2] = b"\0\0"
    upper = len(data) - transport
    start = ones_sum(data[ip + 12 : ip + 20]) + _UDP + upper
    struct.pack_into(">H", whole, place, checksum(bytes(whole[transport:]), start) or 0xFFFF)
    size = max(8, frame.gso_size & ~7)
    for at in range(0, upper, size):
        header = bytearray(data[:transport])
        piece = whole[transport + at : transport + at + size]
        more = _MORE_FRAGMENTS if at + size < upper else 0
        struct.pack_into(">H", header, ip + 2, transport - ip + len(piece))
        struct.pack_into(">H", header, ip + 6, more | at >> 3)
        _seal_ipv4(header, ip, transport)
        yield bytes(header + piece)


def _seal_ipv4(packet: bytearray, ip: int, end: int) -> None:
    packet[ip + 10 : ip + 12] = b"\0\0"
    struct.pack_into(">H", packet, ip + 10, checksum(bytes(packet[ip:end])))
