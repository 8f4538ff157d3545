"""TCP connections that a copied machine's guest has in mind, and nobody at the other end.

The original goes on with them. In the copy each is reset, by a segment that its guest takes for
the peer's (RFC 9293 section 3.5.2). Where the peer had gone further than the guest knows, the
guest objects (RFC 5961 section 3.2), and is answered as anybody who speaks of no connection.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from ringzero.core.frames import ETHERNET_HEADER, Frame
from ringzero.net.stack.ip import ETHERTYPE_IPV4, ETHERTYPE_IPV6, TCP, Path
from ringzero.net.stack.tcp.connection import Connection
from ringzero.net.stack.tcp.segment import HEADER, RST

# The guest's port, the peer's, and what the peer would send next; the two addresses before.
_REST = struct.Struct(">HHI")
_SIZES = (4, 16)
_MTU = 1280


def pack(connections: Iterable[Connection]) -> tuple[bytes, ...]:
    """Return connections as plain data: guest's address and peer's, ports, sequence number."""
    return tuple(
        c.path.destination + c.path.source + _REST.pack(c.remote, c.local, c.next_sequence)
        for c in connections
    )


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
        remote, local, sequence = _REST.unpack_from(data, 2 * size)
        kind = ETHERTYPE_IPV4 if size == 4 else ETHERTYPE_IPV6
        for mac in targets:
            path = Path(mac + gateway + kind, peer, guest, _MTU)
            header = HEADER.pack(
                *(local, remote, sequence, 0),
                *(HEADER.size << 10 | RST, 0, path.partial_sum(TCP, HEADER.size), 0),
            )
            start = ETHERNET_HEADER + path.overhead
            yield Frame(path.header(TCP, HEADER.size) + header, (), start, 16)
