"""TCP's segments (RFC 9293 section 3.1) and their options, taken apart and put together."""

from __future__ import annotations

import struct

from ringzero.core.frames import ETHERNET_HEADER, GSO_NONE, GSO_TCP4, GSO_TCP6, Buffer, Frame
from ringzero.net.stack.ip import (
    ETHERTYPE_IPV6,
    FRAGMENTED,
    IPV4_HEADER,
    IPV6_HEADER,
    PLAIN4,
    TCP,
    Packet,
    Path,
)

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
HEADER = struct.Struct(">HHIIHHHH")
MASK = 0xFFFFFFFF
CHECKSUM_OFFSET = 16
# RFC 9293 section 3.2, RFC 7323, RFC 2018: kinds of options.
OPTION_END, OPTION_NOP, OPTION_MSS, OPTION_SCALE, OPTION_SACK_PERMITTED, OPTION_SACK = range(6)
# RFC 9293 section 3.7.1: who does not say takes this.
DEFAULT_MSS = 536
# RFC 2018 section 3: what there is room for beside other options.
MAX_SACK_BLOCKS = 3
# Bytes of payload that are copied behind their header: two pieces cost more.
_SMALL = 512
# Ethernet, IPv4 without options, TCP: type of service and length, fragment, TTL and protocol.
_HEADERS4 = struct.Struct(">14sIIHH12sIIHHHH")
_HEADERS6 = struct.Struct(">14sIHH36sIIHHHH")
# What comes in: lengths, fragment, protocol, ports and so on, from the length field on.
_FRAME4, _FRAME6 = struct.Struct(">HxxHxBxx8xHHIIHH"), struct.Struct(">HBx32xHHIIHH")
_LEAST4 = ETHERNET_HEADER + IPV4_HEADER + HEADER.size
_LEAST6 = ETHERNET_HEADER + IPV6_HEADER + HEADER.size
_VERSION4, _DONT_FRAGMENT, _TTL_TCP = 0x4500 << 16, 0x4000, 64 << 8 | TCP
_VERSION6, _TCP_TTL = 6 << 28, TCP << 8 | 64


def difference(first: int, second: int) -> int:
    """Return how far the sequence number `first` is ahead of `second`, -2**31 to 2**31-1."""
    return ((first - second + 0x80000000) & MASK) - 0x80000000


class Segment:
    """A TCP segment that came. `window` is as the header has it, `size` that of the payload."""

    __slots__ = (
        *("ack", "buffers", "destination_port", "flags", "options", "sequence", "size"),
        *("source_port", "window"),
    )

    def __init__(
        self,
        source_port: int,
        destination_port: int,
        sequence: int,
        ack: int,
        flags: int,
        window: int,
        options: bytes,
        buffers: list[Buffer],
        size: int,
    ) -> None:
        self.source_port, self.destination_port = source_port, destination_port
        self.sequence, self.ack, self.flags, self.window = sequence, ack, flags, window
        self.options, self.buffers, self.size = options, buffers, size

    @property
    def length(self) -> int:
        """How many sequence numbers it takes."""
        return self.size + bool(self.flags & SYN) + bool(self.flags & FIN)


def parse(packet: Packet) -> Segment:
    """Return the segment in a packet; raises ValueError where there is none."""
    head, at = packet.head, packet.at
    if packet.size < HEADER.size or len(head) < at + HEADER.size:
        raise ValueError("a TCP header is cut off")
    source, destination, sequence, ack, offset_flags, window, _, _ = HEADER.unpack_from(head, at)
    length = (offset_flags >> 12) * 4
    if not HEADER.size <= length <= packet.size or len(head) < at + length:
        raise ValueError("a TCP header of an impossible length")
    size = packet.size - length
    return Segment(
        *(source, destination, sequence, ack, offset_flags & 0x1F, window),
        *(head[at + HEADER.size : at + length], packet.after(length) if size else [], size),
    )


def parse_frame(frame: Frame) -> Segment | None:
    """Return the segment in an ordinary frame; None where the frame wants a closer look.

    Ordinary are whole packets without options or extensions, whose checksum was left open.
    """
    head = frame.head
    there = frame.size - ETHERNET_HEADER
    if not frame.checksum_start or len(head) < _LEAST4:
        return None
    if head[12:15] == PLAIN4:
        total, fragment, protocol, source, destination, sequence, ack, offset_flags, window = (
            _FRAME4.unpack_from(head, 16)
        )
        # A remainder of 0 is the right checksum (`ones_sum`).
        if fragment & FRAGMENTED or int.from_bytes(head[14:34], "big") % 0xFFFF:
            return None
        total -= IPV4_HEADER
        there -= IPV4_HEADER
        at = ETHERNET_HEADER + IPV4_HEADER
    elif head[12:14] == ETHERTYPE_IPV6 and head[14] >> 4 == 6 and len(head) >= _LEAST6:
        total, protocol, source, destination, sequence, ack, offset_flags, window = (
            _FRAME6.unpack_from(head, 18)
        )
        there -= IPV6_HEADER
        at = ETHERNET_HEADER + IPV6_HEADER
    else:
        return None
    length = (offset_flags >> 12) * 4
    size = there - length
    # The length of what is yet to be cut may not fit its field.
    if protocol != TCP or (total != there and not frame.gso) or length < HEADER.size or size < 0:
        return None
    end = at + length
    if end > len(head):
        return None
    rest = frame.rest
    if not size:
        buffers: list[Buffer] = []
    elif not rest:
        buffers = [head[end:]]
    elif end == len(head):
        buffers = list(rest)
    else:
        buffers = [head[end:], *rest]
    return Segment(
        *(source, destination, sequence, ack, offset_flags & 0x1F, window),
        *(head[at + HEADER.size : end], buffers, size),
    )


def parse_options(options: bytes) -> dict[int, bytes]:
    """Return the options by their kinds; what makes no sense ends the list."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(options):
        kind = options[at]
        if kind == OPTION_END:
            break
        if kind == OPTION_NOP:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            break
        found[kind] = options[at + 2 : at + length]
        at += length
    return found


def syn_options(mss: int, scale: int | None, sack: bool) -> bytes:
    """Return the options of a SYN; `scale` None is without window scaling."""
    options = struct.pack(">BBH", OPTION_MSS, 4, mss)
    if scale is not None:
        options += bytes((OPTION_NOP, OPTION_SCALE, 3, scale))
    if sack:
        options += bytes((OPTION_NOP, OPTION_NOP, OPTION_SACK_PERMITTED, 2))
    return options


def sack_option(blocks: list[tuple[int, int]]) -> bytes:
    """Return the option that tells of blocks, the first ones of them; padded to 32 bits."""
    data = b"".join(struct.pack(">II", *block) for block in blocks[:MAX_SACK_BLOCKS])
    return bytes((OPTION_NOP, OPTION_NOP, OPTION_SACK, len(data) + 2)) + data


def sack_blocks(option: bytes) -> list[tuple[int, int]]:
    """Return the blocks of an option's value."""
    return [struct.unpack_from(">II", option, at) for at in range(0, len(option) - 7, 8)]


def frame(
    path: Path,
    ports: bytes,
    sequence: int,
    ack: int,
    flags: int,
    window: int,
    options: bytes = b"",
    data: memoryview | None = None,
    mss: int = 0,
) -> Frame:
    """Return a frame that carries a segment, its checksum open; more than `mss` is left uncut.

    `ports` are both, 4 bytes, the source's first.
    """
    size = len(data) if data is not None else 0
    length = HEADER.size + len(options) + size
    offset_flags = (HEADER.size + len(options)) << 10 | flags
    pseudo = path.pseudo_sum + TCP + length
    pseudo = (pseudo & 0xFFFF) + (pseudo >> 16)
    if path.overhead == IPV4_HEADER:
        total = path.ipv4_sum + length + (IPV4_HEADER + TCP)
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        head = _HEADERS4.pack(
            *(path.ethernet, _VERSION4 | length + IPV4_HEADER, _DONT_FRAGMENT, _TTL_TCP),
            *(0xFFFF - total, path.addresses + ports, sequence, ack, offset_flags, window),
            *(pseudo, 0),
        )
        gso = GSO_TCP4
    else:
        head = _HEADERS6.pack(
            *(path.ethernet, _VERSION6, length, _TCP_TTL, path.addresses + ports),
            *(sequence, ack, offset_flags, window, pseudo, 0),
        )
        gso = GSO_TCP6
    start = ETHERNET_HEADER + path.overhead
    if options:
        head += options
    if data is None or not size:
        return Frame(head, (), start, CHECKSUM_OFFSET)
    if size <= mss:
        if size <= _SMALL:
            return Frame(head + data, (), start, CHECKSUM_OFFSET)
        return Frame(head, (data,), start, CHECKSUM_OFFSET, GSO_NONE, 0)
    return Frame(head, (data,), start, CHECKSUM_OFFSET, gso, mss)


def reset_for(segment: Segment, back: Path) -> Frame:
    """Return what answers a segment that belongs to no connection (RFC 9293 section 3.10.7.1)."""
    flags, sequence, ack = RST, segment.ack, 0
    if not segment.flags & ACK:
        flags, sequence, ack = RST | ACK, 0, segment.sequence + segment.length & MASK
    ports = struct.pack(">HH", segment.destination_port, segment.source_port)
    return frame(back, ports, sequence, ack, flags, 0)
