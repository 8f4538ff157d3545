"""Addresses as bytes: text and back, MAC addresses, and those that lead nowhere."""

from __future__ import annotations

import socket

from ringzero.errors import InvalidValueError

BROADCAST_MAC = b"\xff" * 6
ANY4, BROADCAST4 = bytes(4), b"\xff" * 4
ANY6, LOOPBACK6 = bytes(16), bytes(15) + b"\1"
ALL_NODES6 = bytes.fromhex("ff02000000000000 0000000000000001")
_MAPPED = bytes(10) + b"\xff\xff"


def parse(text: str) -> bytes:
    """Return the address that `text` names; raises InvalidValueError."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
    raise InvalidValueError(f"{text!r} is no IP address", hint="write 192.0.2.1 or 2001:db8::1")


def text(address: bytes) -> str:
    """Return an address, of 4 or 16 bytes, as people write it."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def mac_text(mac: bytes) -> str:
    """Return a MAC address as people write it."""
    return mac.hex(":")


def in_prefix(address: bytes, prefix: bytes, length: int) -> bool:
    """Return whether the first `length` bits of both are the same."""
    if len(address) != len(prefix):
        return False
    shift = 8 * len(address) - length
    return int.from_bytes(address, "big") >> shift == int.from_bytes(prefix, "big") >> shift


def is_multicast(address: bytes) -> bool:
    """Return whether an address is of a group, or the IPv4 broadcast."""
    if len(address) == 4:
        return address[0] >= 224
    return address[0] == 0xFF


def leads_out(address: bytes) -> bool:
    """Return whether a router may pass on what goes there.

    Not so what belongs to a link or a host: RFC 6890's "this network", loopback and
    link-local addresses, groups, and IPv4 addresses in IPv6's clothes.
    """
    if is_multicast(address):
        return False
    if len(address) == 4:
        return address[0] not in (0, 127)
    if address[:12] in (bytes(12), _MAPPED):
        return False
    return not (address[0] == 0xFE and address[1] & 0xC0 == 0x80)


def link_local(mac: bytes) -> bytes:
    """Return the IPv6 address that a MAC address makes (RFC 4291, appendix A)."""
    return b"\xfe\x80" + bytes(6) + interface_identifier(mac)


def interface_identifier(mac: bytes) -> bytes:
    """Return the modified EUI-64 of a MAC address."""
    return bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def multicast_mac(group: bytes) -> bytes:
    """Return where Ethernet sends an IPv6 group (RFC 2464 section 7)."""
    return b"\x33\x33" + group[12:]


def solicited_node(address: bytes) -> bytes:
    """Return the group at which an IPv6 address is asked for (RFC 4291 section 2.7.1)."""
    return bytes.fromhex("ff0200000000000000000001ff") + address[13:]
