"""What a port of a switch may say of itself: its own addresses, and nothing of a router's.

The rules are those of libvirt's `clean-traffic` filter, RA guard (RFC 6105, RFC 7113) and first
come, first served for IPv6 addresses (RFC 6620): a guest makes those up itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from ringzero.core.frames import ETHERNET_HEADER, Frame
from ringzero.net.stack import arp, dhcp, ndp
from ringzero.net.stack.addresses import ANY4, ANY6, in_prefix
from ringzero.net.stack.ip import (
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ICMPV6,
    IPV4_HEADER,
    IPV6_HEADER,
    UDP,
)

# RFC 8200: extension headers behind which a message could hide from a look at the first header.
_EXTENSIONS = (0, 43, 44, 60)
_REDIRECT = 137
# IPv6 addresses that all ports together have; Linux keeps two or three for each interface.
MAX_CLAIMS, MAX_CLAIMS_OF_ONE = 4096, 16
_LINK_LOCAL = bytes.fromhex("fe80") + bytes(14)


class Claims:
    """Which port has which address that nobody gave it: whoever was first."""

    def __init__(self) -> None:
        self._owners: OrderedDict[bytes, Guard] = OrderedDict()

    def claim(self, address: bytes, guard: Guard) -> bool:
        """Return whether an address is the port's, which it becomes if it was nobody's."""
        owner = self._owners.get(address)
        if owner is not None:
            return owner is guard
        if len(guard.claimed) >= MAX_CLAIMS_OF_ONE:
            oldest = next(iter(guard.claimed))
            self._drop(oldest)
        elif len(self._owners) >= MAX_CLAIMS:
            return False
        self._owners[address] = guard
        guard.claimed[address] = None
        return True

    def owner(self, address: bytes) -> Guard | None:
        """Return whose an address is."""
        return self._owners.get(address)

    def free(self, address: bytes) -> None:
        """An address is given to somebody: who had it has it no more."""
        if address in self._owners:
            self._drop(address)

    def _drop(self, address: bytes) -> None:
        guard = self._owners.pop(address)
        del guard.claimed[address]

    def leave(self, guard: Guard) -> None:
        """Free what a port had."""
        for address in list(guard.claimed):
            self._drop(address)


class Guard:
    """What one port may say. `mac` is its address; `addresses` are its IPv4 addresses.

    The owner changes `addresses` as leases come and go; with None the first come, first served
    holds for IPv4 as well, and for addresses that are `spare`. `reserved` are addresses that no
    guest has: the gateway's.
    `prefix6` is the link's /64.
    """

    def __init__(
        self,
        mac: bytes,
        claims: Claims,
        addresses: set[bytes] | None = None,
        *,
        reserved: frozenset[bytes] = frozenset(),
        prefix6: bytes = b"",
        spare: Callable[[bytes], bool] = lambda address: False,
    ) -> None:
        self.mac = mac
        self.addresses = addresses
        self.claimed: dict[bytes, None] = {}
        self._claims = claims
        self._reserved = reserved
        self._prefix6 = prefix6
        self._spare = spare

    def close(self) -> None:
        """Free the port's addresses."""
        self._claims.leave(self)

    def allows(self, frame: Frame) -> bool:
        """Return whether a frame of the port's is one that it may send."""
        head = frame.head
        if len(head) < ETHERNET_HEADER or head[6:12] != self.mac:
            return False
        kind = head[12:14]
        if kind == ETHERTYPE_IPV4:
            return self._allows4(head)
        if kind == ETHERTYPE_IPV6:
            return self._allows6(head)
        # Nothing else is of use here, and tags would hide what follows.
        return kind == ETHERTYPE_ARP and self._allows_arp(head)

    def _owns4(self, address: bytes) -> bool:
        if address in self._reserved:
            return False
        if self.addresses is not None:
            if address in self.addresses:
                return True
            # Asked once: what is claimed is nobody else's any more.
            owner = self._claims.owner(address)
            if owner is not None or not self._spare(address):
                return owner is self
        return self._claims.claim(address, self)

    def _owns6(self, address: bytes) -> bool:
        local = in_prefix(address, _LINK_LOCAL, 10)
        if not local and not (self._prefix6 and in_prefix(address, self._prefix6, 64)):
            return False
        return address not in self._reserved and self._claims.claim(address, self)

    def _allows_arp(self, head: bytes) -> bool:
        found = arp.parse(head[ETHERNET_HEADER:])
        if found is None:
            return False
        _, mac, sender, _ = found
        # RFC 5227: whoever probes an address has none yet.
        return mac == self.mac and (sender == ANY4 or self._owns4(sender))

    def _allows4(self, head: bytes) -> bool:
        start = ETHERNET_HEADER
        if len(head) < start + IPV4_HEADER:
            return False
        source, protocol = head[start + 12 : start + 16], head[start + 9]
        at = start + (head[start] & 15) * 4
        ports = head[at : at + 4]
        first = not int.from_bytes(head[start + 6 : start + 8], "big") & 0x1FFF
        if protocol == UDP and first:
            if len(ports) < 4:
                return False
            if int.from_bytes(ports[:2], "big") == dhcp.SERVER_PORT:
                return False
        if source == ANY4:
            client = dhcp.CLIENT_PORT.to_bytes(2, "big") + dhcp.SERVER_PORT.to_bytes(2, "big")
            return protocol == UDP and first and ports == client
        return self._owns4(source)

    def _allows6(self, head: bytes) -> bool:
        start, at = ETHERNET_HEADER, ETHERNET_HEADER + IPV6_HEADER
        if len(head) < at:
            return False
        source, protocol = head[start + 8 : start + 24], head[start + 6]
        if protocol in _EXTENSIONS and not self._allows_behind(head, at, protocol):
            return False
        if protocol == ICMPV6:
            if not self._allows_icmp6(head[at:], source):
                return False
        elif protocol == UDP and head[at : at + 2] == dhcp.SERVER6_PORT.to_bytes(2, "big"):
            return False
        if source == ANY6:
            # Duplicate address detection, and reports of groups before there is an address.
            return protocol in (ICMPV6, 0)
        return self._owns6(source)

    def _allows_behind(self, head: bytes, at: int, protocol: int) -> bool:
        """Return whether what follows extension headers is no message of a router.

        RFC 6980: neighbour discovery is never in fragments.
        """
        for _ in range(len(_EXTENSIONS) * 2):
            if protocol not in _EXTENSIONS:
                if protocol != ICMPV6:
                    return True
                kind = head[at] if at < len(head) else ndp.ROUTER_SOLICITATION
                return not ndp.ROUTER_SOLICITATION <= kind <= _REDIRECT
            if at + 8 > len(head):
                return False
            if protocol == 44:
                # What follows of a later fragment is no header.
                if int.from_bytes(head[at + 2 : at + 4], "big") & 0xFFF8:
                    return head[at] != ICMPV6
                protocol, at = head[at], at + 8
            else:
                protocol, at = head[at], at + 8 * (head[at + 1] + 1)
        return False

    def _allows_icmp6(self, data: bytes, source: bytes) -> bool:
        if not data:
            return False
        if data[0] in (ndp.ROUTER_ADVERTISEMENT, _REDIRECT):
            return False
        if data[0] not in (ndp.NEIGHBOUR_SOLICITATION, ndp.NEIGHBOUR_ADVERTISEMENT):
            return True
        found = ndp.solicitation(data)
        if found is None:
            return False
        target, told = found
        if told is not None and told != self.mac:
            return False
        if data[0] == ndp.NEIGHBOUR_ADVERTISEMENT or source == ANY6:
            return self._owns6(target)
        return True
