"""The XML of a network (libvirt's formatnetwork)."""

from __future__ import annotations

from ringzero.doors.libvirt.xml.shape import (
    NUMBER,
    YES_NO,
    Extra,
    Many,
    Shape,
    Texts,
    Value,
    Verbatim,
)
from ringzero.records import record


@record
class AddressRangeXml:
    """Addresses that DHCP gives out, both ends included."""

    start: str
    end: str
    extra: tuple[Extra, ...] = ()


ADDRESS_RANGE = Shape("range", AddressRangeXml, {"start": Value("@start"), "end": Value("@end")})


@record
class HostXml:
    """A machine that always gets the same address."""

    ip: str
    mac: str | None = None
    name: str | None = None
    extra: tuple[Extra, ...] = ()


HOST = Shape("host", HostXml, {"mac": Value("@mac"), "name": Value("@name"), "ip": Value("@ip")})


@record
class DnsHostXml:
    """Names of an address."""

    ip: str
    names: tuple[str, ...] = ()
    extra: tuple[Extra, ...] = ()


DNS_HOST = Shape("host", DnsHostXml, {"ip": Value("@ip"), "names": Texts("hostname")})


@record
class IpXml:
    """An address of the network's gateway, and what DHCP does; `netmask` or `prefix` is given."""

    address: str
    family: str | None = None
    netmask: str | None = None
    prefix: int | None = None
    ranges: tuple[AddressRangeXml, ...] = ()
    hosts: tuple[HostXml, ...] = ()
    extra: tuple[Extra, ...] = ()


IP = Shape(
    "ip",
    IpXml,
    {
        "family": Value("@family"),
        "address": Value("@address"),
        "netmask": Value("@netmask"),
        "prefix": Value("@prefix", NUMBER),
        "ranges": Many("dhcp/range", ADDRESS_RANGE),
        "hosts": Many("dhcp/host", HOST),
    },
)


@record
class NetworkXml:
    """A network. `forward` is nat, route, open, bridge, and so on; None: machines alone."""

    name: str
    uuid: str | None = None
    connections: int | None = None
    ipv6: bool | None = None
    metadata: tuple[str, ...] = ()
    forward: str | None = None
    forward_dev: str | None = None
    first_port: int | None = None
    last_port: int | None = None
    bridge: str | None = None
    stp: str | None = None
    delay: str | None = None
    mtu: int | None = None
    mac: str | None = None
    domain: str | None = None
    dns_hosts: tuple[DnsHostXml, ...] = ()
    ips: tuple[IpXml, ...] = ()
    extra: tuple[Extra, ...] = ()


NETWORK = Shape(
    "network",
    NetworkXml,
    {
        "connections": Value("@connections", NUMBER),
        "ipv6": Value("@ipv6", YES_NO),
        "name": Value("name"),
        "uuid": Value("uuid"),
        "metadata": Verbatim("metadata"),
        "forward": Value("forward/@mode"),
        "forward_dev": Value("forward/@dev"),
        "first_port": Value("forward/nat/port/@start", NUMBER),
        "last_port": Value("forward/nat/port/@end", NUMBER),
        "bridge": Value("bridge/@name"),
        "stp": Value("bridge/@stp"),
        "delay": Value("bridge/@delay"),
        "mtu": Value("mtu/@size", NUMBER),
        "mac": Value("mac/@address"),
        "domain": Value("domain/@name"),
        "dns_hosts": Many("dns/host", DNS_HOST),
        "ips": Many("ip", IP),
    },
)
