"""One element of a network put in, taken out, or changed (virNetworkUpdate)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ringzero.doors.libvirt.constants import NetworkSection, NetworkUpdate
from ringzero.doors.libvirt.xml.network import (
    ADDRESS_RANGE,
    DNS_HOST,
    HOST,
    AddressRangeXml,
    DnsHostXml,
    HostXml,
    IpXml,
    NetworkXml,
)
from ringzero.errors import ConfigError, ConflictError
from ringzero.records import replace

R = TypeVar("R")


def updated(
    network: NetworkXml, command: int, section: int, parent: int, document: str
) -> NetworkXml:
    """Return the network after a change; `parent` is which of its subnets, -1 the first.

    Raises InvalidValueError for the document, ConflictError for what is there already or is
    not, ConfigError for what is not changed this way.
    """
    if section == NetworkSection.DNS_HOST:
        host = DNS_HOST.parse(document)
        hosts = _changed(network.dns_hosts, command, host, _same_dns_host, "dns host")
        return replace(network, dns_hosts=hosts)
    if section not in (NetworkSection.IP_DHCP_HOST, NetworkSection.IP_DHCP_RANGE):
        raise ConfigError(
            ["of a network that is there, hosts and ranges of DHCP and hosts of DNS are changed"],
            hint="define the network anew",
        )
    number = max(parent, 0)
    if number >= len(network.ips):
        raise ConflictError(f"the network {network.name!r} has no <ip> number {number}")
    ip = _with(network.ips[number], command, section, document)
    return replace(network, ips=(*network.ips[:number], ip, *network.ips[number + 1 :]))


def _with(ip: IpXml, command: int, section: int, document: str) -> IpXml:
    if section == NetworkSection.IP_DHCP_RANGE:
        span = ADDRESS_RANGE.parse(document)
        return replace(ip, ranges=_changed(ip.ranges, command, span, _same_range, "dhcp range"))
    host = HOST.parse(document)
    if command == NetworkUpdate.MODIFY:
        found = [old for old in ip.hosts if _same_machine(old, host)]
        if not found:
            raise _absent("dhcp host")
        return replace(ip, hosts=tuple(host if old is found[0] else old for old in ip.hosts))
    same = _is_meant if command == NetworkUpdate.DELETE else _collides
    return replace(ip, hosts=_changed(ip.hosts, command, host, same, "dhcp host"))


def _changed(
    items: tuple[R, ...], command: int, item: R, same: Callable[[R, R], bool], noun: str
) -> tuple[R, ...]:
    found = [old for old in items if same(old, item)]
    if command == NetworkUpdate.DELETE:
        if not found:
            raise _absent(noun)
        return tuple(old for old in items if old is not found[0])
    if command not in (NetworkUpdate.ADD_FIRST, NetworkUpdate.ADD_LAST):
        raise ConfigError([f"a {noun} is not changed"], hint="delete it, and add another")
    if found:
        raise ConflictError(f"the network has a matching {noun} already")
    return (item, *items) if command == NetworkUpdate.ADD_FIRST else (*items, item)


def _same_machine(old: HostXml, new: HostXml) -> bool:
    """What is changed is found by its MAC address, else by its name."""
    if new.mac is not None:
        return (old.mac or "").lower() == new.mac.lower()
    return new.name is not None and old.name == new.name


def _is_meant(old: HostXml, new: HostXml) -> bool:
    """What is deleted has all that is told of it."""
    mac = new.mac is None or (old.mac or "").lower() == new.mac.lower()
    return mac and new.name in (None, old.name) and new.ip in (None, old.ip)


def _collides(old: HostXml, new: HostXml) -> bool:
    ip = new.ip is not None and old.ip == new.ip
    name = new.name is not None and old.name == new.name
    return _same_machine(old, new) or ip or name


def _same_range(old: AddressRangeXml, new: AddressRangeXml) -> bool:
    return (old.start, old.end) == (new.start, new.end)


def _same_dns_host(old: DnsHostXml, new: DnsHostXml) -> bool:
    return old.ip == new.ip or bool(set(old.names) & set(new.names))


def _absent(noun: str) -> ConflictError:
    return ConflictError(f"couldn't locate a matching {noun} in the network")
