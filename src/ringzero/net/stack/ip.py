"""IPv4 (RFC 791) and IPv6 (RFC 8200): packets taken apart, checked, put together and made whole.

Addresses are bytes, 4 or 16 of them, which also tell the version.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from ringzero.core.frames import ETHERNET_HEADER, Buffer, Frame, ones_sum

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
ETHERTYPE_IPV4, ETHERTYPE_ARP, ETHERTYPE_IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
IPV4_HEADER, IPV6_HEADER = 20, 40
# RFC 8200 section 4.1: hop-by-hop options, routing, fragment, destination options.
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
# More extension headers than any real packet has.
_MAX_EXTENSIONS = 8
_TTL = 64
_DONT_FRAGMENT, _MORE_FRAGMENTS, _OFFSET = 0x4000, 0x2000, 0x1FFF
# RFC 791 and RFC 8200 section 4.5: a packet whose rest does not come is given up, in seconds.
REASSEMBLY_TIME = 30.0
# Packets in pieces at once, pieces of each, and bytes of all.
MAX_PACKETS, MAX_PIECES, MAX_BYTES = 64, 128, 1 << 20
MAX_PACKET = 65535

# How an IPv4 packet without options begins behind the addresses of its frame; the bits of the
# fragment field that make a fragment.
PLAIN4, FRAGMENTED = ETHERTYPE_IPV4 + b"\x45", _MORE_FRAGMENTS | _OFFSET

_PORTS = struct.Struct(">HH")
_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_IPV6 = struct.Struct(">IHBB16s16s")


class Packet:
    """An IP packet: `protocol` begins at `head[at]`, and `rest` follows `head`.

    `size` is the number of bytes from there on. `checked` says that the upper checksum need
    not be looked at; `header` is the IP header and 8 bytes more, for ICMP errors.
    """

    __slots__ = (
        *("at", "checked", "destination", "frame", "head", "protocol", "rest", "size", "source"),
        *("start", "ttl"),
    )

    def __init__(
        self,
        frame: Frame,
        protocol: int,
        source: bytes,
        destination: bytes,
        ttl: int,
        head: bytes,
        start: int,
        at: int,
        rest: Sequence[Buffer],
        size: int,
        checked: bool,
    ) -> None:
        self.frame = frame
        self.protocol = protocol
        self.source, self.destination, self.ttl = source, destination, ttl
        self.head, self.start, self.at, self.rest = head, start, at, rest
        self.size = size
        self.checked = checked

    def after(self, count: int) -> list[Buffer]:
        """Return the buffers that follow the first `count` bytes of the upper protocol."""
        first = self.head[self.at + count :]
        return [first, *self.rest] if first else list(self.rest)

    def data(self) -> bytes:
        """Return the upper protocol's bytes in one piece."""
        return b"".join(self.after(0))

    def original(self) -> bytes:
        """Return the beginning of the packet, as ICMP errors quote it."""
        return self.head[self.start :]

    def checksum_fits(self) -> bool:
        """Return whether the upper protocol's checksum, over a pseudo header, is right."""
        if self.checked:
            return True
        total = pseudo_sum(self.source, self.destination, self.protocol, self.size)
        return (total + ones_sum(self.data())) % 0xFFFF == 0


def pseudo_sum(source: bytes, destination: bytes, protocol: int, size: int) -> int:
    """Return the sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1)."""
    return ones_sum(source + destination) + protocol + (size >> 16) + (size & 0xFFFF)


def flow_key(head: bytes) -> bytes:
    """Return addresses and ports, the sender's first, as a frame has them.

    What kind of frame it is, is not looked at: it is meant for those without IP options.
    """
    return head[26:38] if head[12] == 0x08 else head[22:58]


def key_of(guest: bytes, guest_port: int, other: bytes, other_port: int) -> bytes:
    """Return the `flow_key` of what a guest sends from one port to another."""
    return guest + other + _PORTS.pack(guest_port, other_port)


class Reassembler:
    """Puts fragments together; what a guest can make it keep is bounded in number and bytes."""

    def __init__(self) -> None:
        self._packets: OrderedDict[tuple[bytes, bytes, int, int], _Pieces] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._packets)

    @property
    def size(self) -> int:
        """Bytes that wait for others."""
        return self._bytes

    def add(
        self,
        key: tuple[bytes, bytes, int, int],
        offset: int,
        data: bytes,
        more: bool,
        now: float,
    ) -> bytes | None:
        """Take a piece; return the whole where this completes it."""
        self.expire(now)
        pieces = self._packets.get(key)
        if pieces is None:
            pieces = self._packets[key] = _Pieces(now)
        self._bytes += len(data)
        if not pieces.add(offset, data, more):
            self._forget(key)
            return None
        whole = pieces.whole()
        if whole is not None:
            self._forget(key)
        while self._bytes > MAX_BYTES or len(self._packets) > MAX_PACKETS:
            self._forget(next(iter(self._packets)))
        return whole

    def expire(self, now: float) -> None:
        """Give packets up whose rest did not come in time."""
        while self._packets:
            key, pieces = next(iter(self._packets.items()))
            if now - pieces.begun < REASSEMBLY_TIME:
                break
            self._forget(key)

    def _forget(self, key: tuple[bytes, bytes, int, int]) -> None:
        self._bytes -= self._packets.pop(key).size


class _Pieces:
    """The pieces of one packet, by their offsets."""

    def __init__(self, now: float) -> None:
        self.begun = now
        self.size = 0
        self._data: dict[int, bytes] = {}
        self._end: int | None = None

    def add(self, offset: int, data: bytes, more: bool) -> bool:
        """Take a piece; False where the packet is not worth going on with."""
        self.size += len(data)
        end = offset + len(data)
        if not data or end > MAX_PACKET or len(self._data) >= MAX_PIECES:
            return False
        if more and len(data) % 8:
            return False
        if self._data.get(offset, data) != data:
            return False
        # RFC 5722: a packet with pieces that overlap is dropped.
        for start, other in self._data.items():
            if start != offset and start < end and offset < start + len(other):
                return False
        if not more:
            if self._end not in (None, end):
                return False
            self._end = end
        self._data[offset] = data
        return self._end is None or all(s + len(d) <= self._end for s, d in self._data.items())

    def whole(self) -> bytes | None:
        """Return the packet, if nothing is missing."""
        if self._end is None or sum(map(len, self._data.values())) != self._end:
            return None
        return b"".join(self._data[offset] for offset in sorted(self._data))


def parse(frame: Frame, reassembler: Reassembler, now: float) -> Packet | None:
    """Return the IP packet in `frame`; None where there is none, or not all of it yet."""
    kind = frame.head[12:14]
    if kind == ETHERTYPE_IPV4:
        return _parse_ipv4(frame, reassembler, now)
    if kind == ETHERTYPE_IPV6:
        return _parse_ipv6(frame, reassembler, now)
    return None


def _parse_ipv4(frame: Frame, reassembler: Reassembler, now: float) -> Packet | None:
    head, start = frame.head, ETHERNET_HEADER
    if len(head) < start + IPV4_HEADER:
        return None
    first, _, total, identification, fragment, ttl, protocol, _, source, destination = (
        _IPV4.unpack_from(head, start)
    )
    length = (first & 15) * 4
    there = frame.size - start
    if frame.gso:
        # The length of what is yet to be cut may not fit its field.
        total = there
    at = start + length
    if first >> 4 != 4 or length < IPV4_HEADER or not length <= total <= there or at > len(head):
        return None
    if ones_sum(head[start:at]) != 0xFFFF:
        return None
    rest: Sequence[Buffer] = frame.rest
    if total < there:
        head, rest = frame.data()[: start + total], ()
    checked = bool(frame.checksum_start)
    size = total - length
    if fragment & FRAGMENTED:
        data = b"".join((head[at:], *rest))
        key = (source, destination, protocol, identification)
        more = bool(fragment & _MORE_FRAGMENTS)
        whole = reassembler.add(key, (fragment & _OFFSET) * 8, data, more, now)
        if whole is None:
            return None
        head, rest, size, checked = head[:at] + whole, (), len(whole), False
    return Packet(
        *(frame, protocol, source, destination, ttl, head, start, at, rest, size, checked)
    )


def _parse_ipv6(frame: Frame, reassembler: Reassembler, now: float) -> Packet | None:
    head, start = frame.head, ETHERNET_HEADER
    at = start + IPV6_HEADER
    if len(head) < at:
        return None
    first, size, protocol, ttl, source, destination = _IPV6.unpack_from(head, start)
    there = frame.size - at
    if frame.gso:
        size = there
    if first >> 28 != 6 or size > there:
        return None
    rest: Sequence[Buffer] = frame.rest
    if size < there:
        head, rest = frame.data()[: at + size], ()
    checked = bool(frame.checksum_start)
    for _ in range(_MAX_EXTENSIONS):
        if protocol not in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION):
            return Packet(
                *(frame, protocol, source, destination, ttl, head, start, at, rest, size, checked)
            )
        if len(head) < at + 8 or size < 8:
            return None
        following, length = head[at], 8 * (head[at + 1] + 1)
        if protocol == _FRAGMENT:
            length = 8
            where, identification = struct.unpack_from(">HI", head, at + 2)
            data = b"".join((head[at + 8 :], *rest))
            key = (source, destination, following, identification)
            whole = reassembler.add(key, where & 0xFFF8, data, bool(where & 1), now)
            if whole is None:
                return None
            head, rest, size, checked = head[: at + 8] + whole, (), len(whole) + 8, False
        elif protocol == _ROUTING and head[at + 3]:
            # RFC 5095: nobody routes by the source any more.
            return None
        if len(head) < at + length or size < length:
            return None
        protocol, at, size = following, at + length, size - length
    return None


class Path:
    """From one address to another over one link: makes the headers in front of a payload.

    `ethernet` is the Ethernet header; `mtu` bounds IP packets, in bytes.
    """

    __slots__ = (
        *("addresses", "destination", "ethernet", "ipv4_sum", "mtu", "overhead", "pseudo_sum"),
        *("source",),
    )

    def __init__(self, ethernet: bytes, source: bytes, destination: bytes, mtu: int) -> None:
        self.ethernet = ethernet
        self.source, self.destination = source, destination
        self.mtu = mtu
        self.overhead = IPV4_HEADER if len(source) == 4 else IPV6_HEADER
        self.addresses = source + destination
        # One's complement sums: of the addresses, and of an IPv4 header but length and protocol.
        self.pseudo_sum = ones_sum(self.addresses)
        self.ipv4_sum = self.pseudo_sum + 0x4500 + _DONT_FRAGMENT + (_TTL << 8)

    def header(self, protocol: int, size: int, ttl: int = _TTL) -> bytes:
        """Return the Ethernet and IP headers for `size` bytes of `protocol`."""
        if self.overhead == IPV6_HEADER:
            return self.ethernet + _IPV6.pack(
                6 << 28, size, protocol, ttl, self.source, self.destination
            )
        total = size + IPV4_HEADER
        total_sum = self.ipv4_sum + total + protocol + ((ttl - _TTL) << 8)
        total_sum = (total_sum & 0xFFFF) + (total_sum >> 16)
        total_sum = (total_sum & 0xFFFF) + (total_sum >> 16)
        return self.ethernet + _IPV4.pack(
            *(0x45, 0, total, 0, _DONT_FRAGMENT, ttl, protocol, 0xFFFF - total_sum),
            *(self.source, self.destination),
        )

    def partial_sum(self, protocol: int, size: int) -> int:
        """Return the pseudo header's sum, folded: what an open checksum holds."""
        total = self.pseudo_sum + protocol + size
        return (total & 0xFFFF) + (total >> 16)

    def reversed(self) -> Path:
        """Return the way back; its Ethernet addresses change places."""
        ethernet = self.ethernet[6:12] + self.ethernet[:6] + self.ethernet[12:14]
        return Path(ethernet, self.destination, self.source, self.mtu)

    def fragments(self, protocol: int, data: bytes, identification: int) -> Iterator[Frame]:
        """Yield `data` as one packet, or in pieces where the MTU wants it."""
        if len(data) + self.overhead <= self.mtu:
            yield Frame(self.header(protocol, len(data)) + data)
            return
        room = self.mtu - self.overhead - (8 if self.overhead == IPV6_HEADER else 0) & ~7
        for offset in range(0, len(data), room):
            piece = data[offset : offset + room]
            more = offset + room < len(data)
            if self.overhead == IPV6_HEADER:
                extension = struct.pack(
                    ">BBHI", protocol, 0, offset | more, identification & 0xFFFFFFFF
                )
                yield Frame(self.header(_FRAGMENT, 8 + len(piece)) + extension + piece)
                continue
            where = offset >> 3 | (_MORE_FRAGMENTS if more else 0)
            header = bytearray(
                _IPV4.pack(
                    *(0x45, 0, IPV4_HEADER + len(piece), identification & 0xFFFF, where, _TTL),
                    *(protocol, 0, self.source, self.destination),
                )
            )
            struct.pack_into(">H", header, 10, 0xFFFF - ones_sum(bytes(header)))
            yield Frame(self.ethernet + bytes(header) + piece)
