"""IPv6 neighbours and routers (RFC 4861), with resolvers in the advertisement (RFC 8106)."""

from __future__ import annotations

import struct

from ringzero.core.frames import Frame
from ringzero.net.stack import icmp
from ringzero.net.stack.addresses import (
    ALL_NODES6,
    ANY6,
    link_local,
    multicast_mac,
    solicited_node,
)
from ringzero.net.stack.dnsmessage import encode_name
from ringzero.net.stack.ip import ETHERTYPE_IPV6, Path

ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT = 133, 134
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136
_SOURCE_LINK, _TARGET_LINK, _PREFIX, _MTU, _RDNSS, _DNSSL = 1, 2, 3, 5, 25, 31
_ON_LINK, _AUTONOMOUS = 0x80, 0x40
_OTHER_CONFIGURATION = 0x40
_ROUTER, _SOLICITED, _OVERRIDE = 0x80, 0x40, 0x20
# How long hosts may use what an advertisement says, in seconds: the router's 18 hours are
# the most that its 16 bits hold, and RFC 4861 section 6.2.1 allows 9,000.
ROUTER_LIFETIME, PREFIX_LIFETIME = 9000, 0xFFFFFFFF


def options(data: bytes) -> dict[int, bytes]:
    """Return the first option of each kind, without type and length; raises ValueError."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        length = 8 * data[at + 1] if at + 1 < len(data) else 0
        if not length or at + length > len(data):
            raise ValueError("an option of an impossible length")
        found.setdefault(data[at], data[at + 2 : at + length])
        at += length
    return found


def solicitation(data: bytes) -> tuple[bytes, bytes | None] | None:
    """Return (target, sender's MAC if it tells) of a solicitation or an advertisement."""
    if len(data) < 24:
        return None
    try:
        found = options(data[24:])
    except ValueError:
        return None
    kind = _SOURCE_LINK if data[0] == NEIGHBOUR_SOLICITATION else _TARGET_LINK
    return data[8:24], found.get(kind, b"")[:6] or None


def advertise(mac: bytes, target: bytes, to_mac: bytes, to_address: bytes, router: bool) -> Frame:
    """Return the answer that `target` is at `mac`."""
    solicited = _SOLICITED
    if to_address == ANY6:
        # Duplicate address detection: the asker has no address yet.
        solicited, to_address, to_mac = 0, ALL_NODES6, multicast_mac(ALL_NODES6)
    path = Path(to_mac + mac + ETHERTYPE_IPV6, target, to_address, 1280)
    flags = _OVERRIDE | solicited | (_ROUTER if router else 0)
    body = struct.pack(">B3x", flags) + target + bytes((_TARGET_LINK, 1)) + mac
    return icmp.message(path, NEIGHBOUR_ADVERTISEMENT, 0, body)


def solicit(mac: bytes, wanted: bytes) -> Frame:
    """Return the frame that asks who has `wanted`."""
    group = solicited_node(wanted)
    path = Path(multicast_mac(group) + mac + ETHERTYPE_IPV6, link_local(mac), group, 1280)
    body = bytes(4) + wanted + bytes((_SOURCE_LINK, 1)) + mac
    return icmp.message(path, NEIGHBOUR_SOLICITATION, 0, body)


def router_advertisement(
    mac: bytes,
    source: bytes,
    to_mac: bytes,
    to_address: bytes,
    *,
    prefix: bytes,
    mtu: int,
    resolvers: list[bytes],
    domains: list[str],
    default: bool,
) -> Frame:
    """Return an advertisement of a /64; `default` says whether a way out leads by here."""
    lifetime = ROUTER_LIFETIME if default else 0
    body = struct.pack(">BBHII", 64, _OTHER_CONFIGURATION, lifetime, 0, 0)
    body += bytes((_SOURCE_LINK, 1)) + mac
    body += struct.pack(">BBHI", _MTU, 1, 0, mtu)
    flags = _ON_LINK | _AUTONOMOUS
    body += struct.pack(">BBBBIII", _PREFIX, 4, 64, flags, PREFIX_LIFETIME, PREFIX_LIFETIME, 0)
    body += prefix[:8] + bytes(8)
    if resolvers:
        body += struct.pack(">BBHI", _RDNSS, 1 + 2 * len(resolvers), 0, ROUTER_LIFETIME)
        body += b"".join(resolvers)
    if domains:
        names = b"".join(map(encode_name, domains))
        names += bytes(-len(names) % 8)
        body += struct.pack(">BBHI", _DNSSL, 1 + len(names) // 8, 0, ROUTER_LIFETIME) + names
    path = Path(to_mac + mac + ETHERTYPE_IPV6, source, to_address, 1280)
    return icmp.message(path, ROUTER_ADVERTISEMENT, 0, body)
