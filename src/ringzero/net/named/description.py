"""What a network by name is: its record, checked, and its addresses."""

from __future__ import annotations

import ipaddress
import re
import zlib

from ringzero.config.device import NAME
from ringzero.config.devices.net import UNROUTED
from ringzero.errors import ConfigError, InvalidValueError
from ringzero.net.stack.policy import Rule
from ringzero.net.stack.subnet import Subnet
from ringzero.records import field, record

# nat: out by the host's sockets. isolated: the host and one another, nothing else. open: as nat,
# and machines may speak for addresses that are not theirs, as routers and bridges do.
MODES = ("nat", "isolated", "open")
# Kinds of networks have these names.
RESERVED = ("user", *UNROUTED)
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
# RFC 2131 needs room for a gateway, a resolver and a machine; more than /8 is no private range.
_LONGEST, _SHORTEST = 29, 8
_GATEWAY_MAC = "525a00"
DOMAIN = "ringzero.internal"


@record
class NamedNetwork:
    """A network. `subnet` is as 10.89.0.0/24; its first address is the gateway's, the second the
    resolver's. `first` and `last` bound what DHCP gives out, "" for all the rest. `fixed` are
    addresses by MAC address. `host` and `allow` are those of `NetConfig`.
    """

    name: str
    mode: str = "nat"
    subnet: str = ""
    first: str = ""
    last: str = ""
    fixed: dict[str, str] = field(default_factory=dict)
    host: bool = True
    allow: tuple[str, ...] | None = None

    def check(self) -> None:
        """Raise ConfigError with all that is wrong."""
        found = []
        if not NAME.fullmatch(self.name) or self.name in RESERVED:
            found.append(f"a network cannot be called {self.name!r}")
        if self.mode not in MODES:
            found.append(f"no kind of network is called {self.mode!r}: {', '.join(MODES)}")
        try:
            found += self._address_faults(ipaddress.IPv4Network(self.subnet))
        except ValueError as fault:
            found.append(f"subnet {self.subnet!r}: {fault}")
        try:
            for rule in self.allow or ():
                Rule.parse(rule)
        except InvalidValueError as fault:
            found.append(fault.message)
        if found:
            raise ConfigError(found, hint="see `ringzero network create --help`")

    def _address_faults(self, net: ipaddress.IPv4Network) -> list[str]:
        if not _SHORTEST <= net.prefixlen <= _LONGEST:
            return [f"subnet {net}: a network is a /{_SHORTEST} to a /{_LONGEST}"]
        found, places = [], dict[str, str]()
        for noun, text in (("the DHCP range", self.first), ("the DHCP range", self.last)):
            found += _fault_of(noun, text, net) if text else []
        if not found:
            first, last = self.range4(net)
            if first > last:
                found.append(f"the DHCP range {first}-{last} is empty")
        for mac, address in self.fixed.items():
            if not _MAC.fullmatch(mac):
                found.append(f"{mac!r} is no MAC address of an interface")
            found += _fault_of(f"the lease of {mac}", address, net)
            if address in places:
                found.append(f"{address} is the lease of {places[address]} and of {mac}")
            places[address] = mac
        return found

    def range4(
        self, net: ipaddress.IPv4Network
    ) -> tuple[ipaddress.IPv4Address, ipaddress.IPv4Address]:
        """Return the first and the last address that DHCP gives out."""
        first = ipaddress.IPv4Address(self.first) if self.first else net[3]
        last = ipaddress.IPv4Address(self.last) if self.last else net[-2]
        return first, last

    def addresses(self, mtu: int = 1500) -> Subnet:
        """Return the network's addresses, IPv6's and the gateway's MAC made from its subnet."""
        net = ipaddress.IPv4Network(self.subnet)
        first, last = self.range4(net)
        number = zlib.crc32(f"{self.name} {self.subnet}".encode())
        prefix6 = bytes.fromhex("fd727a00") + number.to_bytes(4, "big")
        return Subnet(
            mac=bytes.fromhex(_GATEWAY_MAC) + number.to_bytes(4, "big")[1:],
            gateway4=net[1].packed,
            resolver4=net[2].packed,
            length4=net.prefixlen,
            first4=first.packed,
            last4=last.packed,
            prefix6=prefix6 + bytes(8),
            gateway6=prefix6 + bytes(7) + b"\1",
            resolver6=prefix6 + bytes(7) + b"\2",
            mtu=mtu,
            domain=DOMAIN,
        )


@record
class NetworkNotes:
    """What is noted of a network, and means nothing to its machines.

    Machines do not join one that is not `active`; one with `autostart` becomes so with `ringzero
    serve`. `metadata` are texts by key, each one's own. `changes` counts.
    """

    uuid: str = ""
    active: bool = True
    autostart: bool = True
    metadata: dict[str, str] = field(default_factory=dict)
    changes: int = 0


def _fault_of(noun: str, text: str, net: ipaddress.IPv4Network) -> list[str]:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError as fault:
        return [f"{noun}: {fault}"]
    if address not in net or address in (net[0], net[-1], net[1], net[2]):
        return [f"{noun}: {address} is none of the machines' addresses in {net}"]
    return []
