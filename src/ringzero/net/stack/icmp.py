"""ICMP (RFC 792) and ICMPv6 (RFC 4443): echoes and errors."""

from __future__ import annotations

import struct

from ringzero.core.frames import Frame, checksum
from ringzero.net.stack.ip import ICMP, ICMPV6, IPV4_HEADER, IPV6_HEADER, Path, pseudo_sum

ECHO_REPLY, UNREACHABLE, ECHO = 0, 3, 8
UNREACHABLE6, TOO_BIG6, ECHO6, ECHO_REPLY6 = 1, 2, 128, 129
# Reasons, as ICMP and as ICMPv6 have them.
NO_ROUTE, NO_HOST, NO_PORT, PROHIBITED = (0, 0), (1, 3), (3, 4), (13, 1)
_FRAGMENTATION_NEEDED = 4
# RFC 1812 section 4.3.2.3 and RFC 4443 section 2.4: how long an error may be.
_LONGEST, _LONGEST6 = 576, 1280


def message(path: Path, kind: int, code: int, body: bytes) -> Frame:
    """Return a message; `body` is all that follows the checksum."""
    if path.overhead == IPV4_HEADER:
        data = struct.pack(">BBH", kind, code, checksum(struct.pack(">BBH", kind, code, 0) + body))
        return Frame(path.header(ICMP, 4 + len(body)) + data + body)
    start = pseudo_sum(path.source, path.destination, ICMPV6, 4 + len(body))
    value = checksum(struct.pack(">BBH", kind, code, 0) + body, start)
    # RFC 4861: hop limit 255 shows that no router was on the way.
    header = path.header(ICMPV6, 4 + len(body), 255)
    return Frame(header + struct.pack(">BBH", kind, code, value) + body)


def echo_reply(path: Path, body: bytes) -> bytes:
    """Return an echo's answer as the upper protocol's bytes; `body` begins at the identifier."""
    if path.overhead == IPV4_HEADER:
        kind, start = ECHO_REPLY, 0
    else:
        kind = ECHO_REPLY6
        start = pseudo_sum(path.source, path.destination, ICMPV6, 4 + len(body))
    head = struct.pack(">BBH", kind, 0, 0)
    return struct.pack(">BBH", kind, 0, checksum(head + body, start)) + body


def unreachable(path: Path, original: bytes, reason: tuple[int, int]) -> Frame:
    """Return the error that tells why the packet that begins as `original` did not arrive."""
    if path.overhead == IPV4_HEADER:
        return message(path, UNREACHABLE, reason[0], bytes(4) + _quoted(original, path))
    return message(path, UNREACHABLE6, reason[1], bytes(4) + _quoted(original, path))


def too_big(path: Path, original: bytes, mtu: int) -> Frame:
    """Return the error that tells the sender how large packets may be (RFC 1191, RFC 8201)."""
    if path.overhead == IPV4_HEADER:
        body = struct.pack(">HH", 0, mtu) + _quoted(original, path)
        return message(path, UNREACHABLE, _FRAGMENTATION_NEEDED, body)
    return message(path, TOO_BIG6, 0, struct.pack(">I", mtu) + _quoted(original, path))


def _quoted(original: bytes, path: Path) -> bytes:
    most = _LONGEST if path.overhead == IPV4_HEADER else _LONGEST6
    return original[: min(most, path.mtu) - path.overhead - 8]


def parse_too_big(data: bytes, version: int) -> tuple[int, bytes] | None:
    """Return (MTU, the packet that was too big) of an ICMP error; None for other messages."""
    if len(data) < 8 + IPV4_HEADER:
        return None
    if version == 4 and data[:2] == bytes((UNREACHABLE, _FRAGMENTATION_NEEDED)):
        return int.from_bytes(data[6:8], "big"), data[8:]
    if version == 6 and data[:2] == bytes((TOO_BIG6, 0)) and len(data) >= 8 + IPV6_HEADER:
        return int.from_bytes(data[4:8], "big"), data[8:]
    return None
