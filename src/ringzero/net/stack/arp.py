"""ARP over Ethernet (RFC 826)."""

from __future__ import annotations

import struct

from ringzero.net.stack.addresses import BROADCAST_MAC
from ringzero.net.stack.ip import ETHERTYPE_ARP

REQUEST, REPLY = 1, 2
# Hardware Ethernet, protocol IPv4, lengths 6 and 4; operation, both ends' addresses.
_PACKET = struct.Struct(">HHBBH6s4s6s4s")
_ETHERNET, _IPV4 = 1, 0x0800


def parse(packet: bytes) -> tuple[int, bytes, bytes, bytes] | None:
    """Return (operation, sender's MAC, sender's address, target's address), if it is one."""
    if len(packet) < _PACKET.size:
        return None
    kind, protocol, *lengths, operation, mac, sender, _, target = _PACKET.unpack_from(packet)
    if (kind, protocol, *lengths) != (_ETHERNET, _IPV4, 6, 4):
        return None
    return operation, mac, sender, target


def reply(mac: bytes, address: bytes, to_mac: bytes, to_address: bytes) -> bytes:
    """Return the frame that says that `address` is at `mac`."""
    body = _PACKET.pack(_ETHERNET, _IPV4, 6, 4, REPLY, mac, address, to_mac, to_address)
    return to_mac + mac + ETHERTYPE_ARP + body


def request(mac: bytes, address: bytes, wanted: bytes) -> bytes:
    """Return the frame that asks who has `wanted`."""
    body = _PACKET.pack(_ETHERNET, _IPV4, 6, 4, REQUEST, mac, address, bytes(6), wanted)
    return BROADCAST_MAC + mac + ETHERTYPE_ARP + body
