"""The addresses of a network of guests."""

from __future__ import annotations

from ringzero.net.stack import addresses
from ringzero.records import record


@record
class Subnet:
    """The addresses of a network. IPv4's are of 4 bytes, IPv6's of 16; `prefix6` is a /64.

    The gateway is also the host's address for guests. `mac` is the gateway's.
    """

    mac: bytes
    gateway4: bytes
    resolver4: bytes
    length4: int
    first4: bytes
    last4: bytes
    prefix6: bytes
    gateway6: bytes
    resolver6: bytes
    mtu: int = 1500
    domain: str = ""

    @property
    def mask4(self) -> bytes:
        """The IPv4 prefix length as a mask."""
        return (0xFFFFFFFF << 32 - self.length4 & 0xFFFFFFFF).to_bytes(4, "big")

    @property
    def gateways(self) -> tuple[bytes, bytes]:
        """The gateway's addresses."""
        return self.gateway4, self.gateway6

    @property
    def resolvers(self) -> tuple[bytes, bytes]:
        """The resolver's addresses."""
        return self.resolver4, self.resolver6

    def has(self, address: bytes) -> bool:
        """Return whether an address is on this link."""
        if len(address) == 4:
            return addresses.in_prefix(address, self.gateway4, self.length4)
        return addresses.in_prefix(address, self.prefix6, 64) or address[:2] == b"\xfe\x80"
