"""The XML of a network (libvirt's formatnetwork), and such a network as the actions know it."""

from __future__ import annotations

import ipaddress
import zlib
from typing import Any

from ringzero.api.values import NetworkSummary
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
from ringzero.errors import ConfigError
from ringzero.records import record, replace


@record
class AddressRangeXml:
    """Addresses that DHCP gives out, both ends included."""

    start: str
    end: str
    extra: tuple[Extra, ...] = ()


ADDRESS_RANGE = Shape("range", AddressRangeXml, {"start": Value("@start"), "end": Value("@end")})


@record
class HostXml:
    """A machine that always gets the same address, or name."""

    ip: str | None = None
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


# What is the same whatever it says: how Linux bridges, of which there is none, are set up.
_QUIET = ("bridge/@macTableManager", "bridge/@zone", "@trustGuestRxFilters")
_MODES = {None: "isolated", "nat": "nat", "route": "open", "open": "open"}
# The first addresses of a network are its own, its gateway's and its resolver's.
_OWN = 3


@record
class NetworkDefinition:
    """The arguments of the `create_network` action, and what of the XML is not carried out."""

    fields: dict[str, Any]
    warnings: tuple[str, ...] = ()


def definition(network: NetworkXml) -> NetworkDefinition:
    """Return the network that the XML asks for; raises ConfigError for one that cannot be."""
    if network.forward not in _MODES:
        raise ConfigError(
            [f"forward mode {network.forward!r}: nat, route, open, or none go"],
            hint="machines join a bridge of the host's by <interface type='bridge'>",
        )
    warnings = [
        f"{path}: kept, and not carried out"
        for path, there in (
            ("forward/nat", network.first_port is not None),
            ("mtu", network.mtu is not None),
            ("domain", network.domain is not None),
            ("dns/host", network.dns_hosts),
        )
        if there
    ]
    warnings += [
        f"{path}: kept, and not carried out"
        for path in NETWORK.unknown(network)
        if path not in _QUIET
    ]
    if network.forward == "route":
        warnings.append("forward: machines go out by the host's own addresses")
    fields: dict[str, Any] = {"name": network.name, "mode": _MODES[network.forward]}
    four = [ip for ip in network.ips if ip.family in (None, "ipv4")]
    if len(network.ips) > len(four[:1]):
        warnings.append("ip: a network has one subnet of IPv4, and one of IPv6 made from it")
    if four:
        fields |= _subnet(four[0], warnings)
    return NetworkDefinition(fields, tuple(warnings))


def _subnet(ip: IpXml, warnings: list[str]) -> dict[str, Any]:
    """Return the arguments for a subnet and who gets which address in it."""
    try:
        length = ip.netmask or (24 if ip.prefix is None else ip.prefix)
        net = ipaddress.IPv4Network(f"{ip.address}/{length}", strict=False)
        ranges = [
            (ipaddress.IPv4Address(item.start), ipaddress.IPv4Address(item.end))
            for item in ip.ranges
        ]
    except ValueError as fault:
        raise ConfigError([f"ip: {fault}"], hint="<ip address='10.1.2.1' netmask='...'>") from fault
    if net.num_addresses <= _OWN + 1:
        raise ConfigError([f"ip: {net} has no room for machines"])
    found: dict[str, Any] = {"subnet": str(net)}
    if ipaddress.IPv4Address(ip.address) != net[1]:
        warnings.append(f"ip/@address: the gateway is {net[1]}")
    if not ranges:
        warnings.append("ip/dhcp: addresses are given out")
    if len(ranges) > 1:
        warnings.append("ip/dhcp/range: addresses are of the first range")
    for begin, end in ranges[:1]:
        # libvirt takes a range with the gateway in it, and passes that over.
        first, last = max(begin, net[_OWN]), min(end, net[-2])
        if first > last:
            raise ConfigError([f"ip/dhcp/range: {begin} to {end} is empty"])
        found["range"] = f"{first}-{last}"
    leases = [f"{host.mac}={host.ip}" for host in ip.hosts if None not in (host.mac, host.ip)]
    if len(leases) < len(ip.hosts):
        warnings.append("ip/dhcp/host: one without a MAC address, or without its own, gets any")
    if leases:
        found["leases"] = leases
    return found


def bridge_name(summary: NetworkSummary, sent: NetworkXml | None = None) -> str:
    """Return what clients are told of a bridge: what one of them called it, or made up.

    There is none on the host; clients show it, or look whether two networks have the same one.
    """
    if sent is not None and sent.bridge:
        return sent.bridge
    return f"rz{zlib.crc32(summary['name'].encode()):08x}"


def network(summary: NetworkSummary, uuid: str, sent: NetworkXml | None = None) -> NetworkXml:
    """Return a network as it is now; of what a summary does not say, what a client once sent."""
    mode = next(kind for kind, ours in _MODES.items() if ours == summary["mode"])
    if sent is not None and _MODES.get(sent.forward) == summary["mode"]:
        mode = sent.forward
    net = ipaddress.IPv4Network(summary["subnet"])
    hosts = tuple(
        HostXml(address, mac, summary["leases"].get(mac, {}).get("name") or None)
        for mac, address in summary["fixed"].items()
    )
    ip = IpXml(
        summary["gateway"],
        netmask=str(net.netmask),
        ranges=(AddressRangeXml(summary["first"], summary["last"]),),
        hosts=hosts,
    )
    ips: tuple[IpXml, ...] = (ip,)
    if sent is not None and sent.ips:
        four = next((n for n, each in enumerate(sent.ips) if each.family in (None, "ipv4")), None)
        ips = tuple(
            replace(each, hosts=_hosts(each, summary)) if n == four else each
            for n, each in enumerate(sent.ips)
        )
    return replace(
        sent or NetworkXml(summary["name"]),
        name=summary["name"],
        uuid=uuid,
        connections=len(summary["machines"]) or None,
        forward=mode,
        bridge=bridge_name(summary, sent),
        ips=ips,
    )


def _hosts(sent: IpXml, summary: NetworkSummary) -> tuple[HostXml, ...]:
    """Return the hosts of a subnet: another door may have changed them since they were sent."""
    fixed, hosts = dict(summary["fixed"]), list[HostXml]()
    for host in sent.hosts:
        if host.mac is None or host.ip is None:
            hosts.append(host)
        elif fixed.get(host.mac.lower()) == host.ip:
            hosts.append(host)
            del fixed[host.mac.lower()]
    return (*hosts, *(HostXml(address, mac) for mac, address in fixed.items()))
