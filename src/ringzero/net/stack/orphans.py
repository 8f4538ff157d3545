"""TCP connections that a copied machine's guest has in mind, and nobody at the other end.

The original goes on with them. In the copy each is reset, by a segment that its guest takes for
the peer's (RFC 9293 section 3.5.2), whether it has heard of the peer or not. Where the peer had
gone further than the guest knows, the guest objects (RFC 5961 section 3.2), and is answered as
anybody who speaks of no connection.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ringzero.core.frames import ETHERNET_HEADER, Frame
from ringzero.net.stack.ip import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IPV4_HEADER,
    IPV6_HEADER,
    TCP,
    Path,
)
from ringzero.net.stack.tcp.segment import ACK, FIN, HEADER, RST, SYN

if TYPE_CHECKING:
    from ringzero.net.stack.tcp.connection import Connection

# The guest's port, the peer's, and the sequence numbers of what the peer would send next, and the
# guest; the two addresses before.
_REST = struct.Struct(">HHII")
_NUMBERS = struct.Struct(">II")
_SIZES = (4, 16)
_MTU = 1280
# When a copy's guest is told of connections that it does not have, in seconds from its start:
# its kernel takes what is sent to the address that it has just then.
RESETS = (0.0, 0.1, 1.0)
# Connections of one guest that a cable remembers.
MAX_PASSING = 1024
# The first byte of an IPv4 header without options.
_NO_OPTIONS = 0x45


def pack(connections: Iterable[Connection]) -> tuple[bytes, ...]:
    """Return connections as plain data: guest's address and peer's, ports, sequence numbers."""
    return tuple(
        c.path.destination
        + c.path.source
        + _REST.pack(c.remote, c.local, c.next_sequence, c.next_expected)
        for c in connections
    )


def peer_of(data: bytes) -> bytes:
    """Return the peer's address of a packed connection."""
    size = (len(data) - _REST.size) // 2
    return data[size : 2 * size]


def resets(packed: Iterable[bytes], gateway: bytes, macs: Iterable[bytes]) -> Iterator[Frame]:
    """Yield the frames that end `packed` connections in a guest that has one of `macs`.

    What is no connection is passed over.
    """
    targets = list(dict.fromkeys(macs))
    for data in packed:
        size = (len(data) - _REST.size) // 2
        if size not in _SIZES or len(data) != 2 * size + _REST.size:
            continue
        guest, peer = data[:size], data[size : 2 * size]
        remote, local, *numbers = _REST.unpack_from(data, 2 * size)
        for mac in targets:
            yield _reset(mac + gateway, (peer, local), (guest, remote), numbers)


def _reset(
    macs: bytes, peer: tuple[bytes, int], guest: tuple[bytes, int], numbers: Sequence[int]
) -> Frame:
    """Return the segment by which a peer resets.

    `numbers` are its sequence number, which counts once the guest has heard of the peer, and the
    one that it acknowledges, which counts before.
    """
    kind = ETHERTYPE_IPV4 if len(peer[0]) == 4 else ETHERTYPE_IPV6
    path = Path(macs + kind, peer[0], guest[0], _MTU)
    header = HEADER.pack(
        *(peer[1], guest[1], *numbers),
        *(HEADER.size << 10 | RST | ACK, 0, path.partial_sum(TCP, HEADER.size), 0),
    )
    start = ETHERNET_HEADER + path.overhead
    return Frame(path.header(TCP, HEADER.size) + header, (), start, 16)


class Passing:
    """One guest's connections, as a cable sees them that ends none: with whomever they are.

    Of each the last segment either way is kept, in all `MAX_PASSING` of them.
    """

    def __init__(self) -> None:
        # By addresses and ports as a segment has them, sender's first: its headers, from the
        # IP header on, and the bytes of the packet.
        self._sent: dict[bytes, tuple[bytes, int]] = {}
        self._received: dict[bytes, tuple[bytes, int]] = {}

    def sent(self, frame: Frame) -> None:
        """Hear of a frame of the guest's."""
        self._note(self._sent, frame)

    def received(self, frame: Frame) -> None:
        """Hear of a frame for the guest."""
        self._note(self._received, frame)

    @staticmethod
    def _note(seen: dict[bytes, tuple[bytes, int]], frame: Frame) -> None:
        head = frame.head
        at = _tcp_at(head)
        if not at:
            return
        key = _key(head, at)
        if head[at + 13] & RST:
            seen.pop(key, None)
            return
        if key not in seen and len(seen) >= MAX_PASSING:
            del seen[next(iter(seen))]
        seen[key] = head[ETHERNET_HEADER : at + HEADER.size], frame.size - ETHERNET_HEADER

    def packed(self) -> tuple[bytes, ...]:
        """Return the connections as `pack` does; from any thread."""
        sent, received = self._sent.copy(), self._received.copy()
        found = []
        for key in dict.fromkeys((*sent, *map(_turned, received))):
            said, heard = sent.get(key), received.get(_turned(key))
            expected = _next(*heard) if heard is not None else 0
            if said is not None and said[0][-7] & ACK:
                # What was sent once more, or to see whether the guest is there, says less.
                known = int.from_bytes(said[0][-12:-8], "big")
                if heard is None or (known - expected) & 0xFFFFFFFF < 1 << 31:
                    expected = known
            numbers = expected, _next(*said) if said is not None else 0
            found.append(key + _NUMBERS.pack(*numbers))
        return tuple(found)


def objection(frame: Frame, packed: frozenset[bytes], own: bytes) -> Frame | None:
    """Return the answer to a guest that goes on with one of the `packed` connections, or None.

    It says itself where it expects the peer to be. From its `own` address it may begin anew.
    """
    head = frame.head
    at = _tcp_at(head)
    if not at or head[at + 13] & RST:
        return None
    key = _key(head, at)
    if key not in packed or key.startswith(own):
        return None
    half = (len(key) - 4) // 2
    remote, local = (int.from_bytes(key[n : n + 2], "big") for n in (2 * half, 2 * half + 2))
    numbers = (
        int.from_bytes(head[at + 8 : at + 12], "big") if head[at + 13] & ACK else 0,
        _next(head[ETHERNET_HEADER : at + HEADER.size], frame.size - ETHERNET_HEADER),
    )
    macs = head[6:12] + head[:6]
    return _reset(macs, (key[half : 2 * half], local), (key[:half], remote), numbers)


def keys(packed: Iterable[bytes]) -> frozenset[bytes]:
    """Return what `objection` knows connections by."""
    return frozenset(data[: -_NUMBERS.size] for data in packed)


def _turned(key: bytes) -> bytes:
    """Return the key of what goes the other way."""
    half = (len(key) - 4) // 2
    return key[half : 2 * half] + key[:half] + key[-2:] + key[-4:-2]


def _tcp_at(head: bytes) -> int:
    """Return where the TCP header is in a frame that has a whole one; 0 where it has none."""
    kind, ip = head[12:14], ETHERNET_HEADER
    if kind == ETHERTYPE_IPV4:
        at = ip + IPV4_HEADER
        if len(head) < at + HEADER.size or head[ip] != _NO_OPTIONS or head[ip + 9] != TCP:
            return 0
        # A later fragment has none.
        return 0 if head[ip + 6] & 0x1F or head[ip + 7] else at
    if kind == ETHERTYPE_IPV6:
        at = ip + IPV6_HEADER
        return at if len(head) >= at + HEADER.size and head[ip + 6] == TCP else 0
    return 0


def _key(head: bytes, at: int) -> bytes:
    """Return the addresses and ports of a segment, the sender's first."""
    return head[at - (8 if at == ETHERNET_HEADER + IPV4_HEADER else 32) : at + 4]


def _next(head: bytes, size: int) -> int:
    """Return the sequence number behind a segment; `head` ends with its fixed TCP header."""
    sequence, flags = int.from_bytes(head[-16:-12], "big"), head[-7]
    payload = size - (len(head) - HEADER.size) - (head[-8] >> 4) * 4
    return (sequence + max(payload, 0) + bool(flags & SYN) + bool(flags & FIN)) & 0xFFFFFFFF
