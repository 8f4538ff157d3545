"""What domains have used and moved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ringzero.api.values import MachineSummary
from ringzero.control.host.client import Host
from ringzero.doors.libvirt import definitions, guestagent, inventory, saves
from ringzero.doors.libvirt.constants import AddressSource, AddressType, MemoryTag, Statistics
from ringzero.doors.libvirt.context import Context, RefusedError, Results, handles
from ringzero.doors.libvirt.faults import ErrorCode
from ringzero.doors.libvirt.handlers.domain import cpu_time, find, find_active
from ringzero.doors.libvirt.inventory import Domain
from ringzero.doors.libvirt.values import (
    DomainHandle,
    DomainStatistics,
    GuestInterface,
    IpAddress,
    MemoryStatistic,
    Parameter,
    ParameterKind,
)
from ringzero.doors.libvirt.xml.domain import DomainXml
from ringzero.errors import RingzeroError
from ringzero.host.process import usage
from ringzero.units import KIB

# virConnectGetAllDomainStatsFlags.
_ACTIVE, _INACTIVE = 1, 2
# An unknown count (virDomainInterfaceStats).
_UNKNOWN = -1
_SECTOR = 512


@handles("CONNECT_GET_ALL_DOMAIN_STATS")
async def all_domain_stats(
    context: Context, domains: list[DomainHandle], stats: int, flags: int
) -> Results:
    def collect(host: Host) -> list[DomainStatistics]:
        if domains:
            found = [inventory.by_handle(host, handle) for handle in domains]
        else:
            found = inventory.domains(host)
        if flags & (_ACTIVE | _INACTIVE):
            found = [d for d in found if flags & (_ACTIVE if d.active else _INACTIVE)]
        told = []
        for domain in found:
            try:
                parameters = list(_parameters(host, domain, stats or ~0))
            except RingzeroError:
                # One that has just gone.
                continue
            told.append(DomainStatistics(domain.handle, parameters))
        return told

    return {"ret_stats": await context.work(collect, context.manager.host)}


def _parameters(host: Host, domain: Domain, groups: int) -> Iterator[Parameter]:
    summary = host.machine(domain.name).inspect()
    if groups & Statistics.STATE:
        state, reason = saves.state(host, domain.name, summary)
        yield _int("state.state", int(state))
        yield _int("state.reason", int(reason))
    if groups & Statistics.CPU_TOTAL and domain.active:
        yield Parameter.of("cpu.time", cpu_time(domain))
    memory = int(summary["config"].get("memory", 0)) // KIB
    if groups & Statistics.BALLOON:
        yield Parameter.of("balloon.current", memory)
        yield Parameter.of("balloon.maximum", memory)
        if domain.active:
            yield Parameter.of("balloon.rss", _resident(domain))
    count = int(summary["config"].get("cpus", 1))
    if groups & Statistics.VCPU:
        yield _uint("vcpu.current", count)
        yield _uint("vcpu.maximum", count)
    document = definitions.xml(host, domain)
    if groups & Statistics.INTERFACE and domain.active:
        yield from _interfaces(document, summary)
    if groups & Statistics.BLOCK:
        yield from _blocks(document)


def _interfaces(document: DomainXml, summary: MachineSummary) -> Iterator[Parameter]:
    yield _uint("net.count", len(document.interfaces))
    for number, item in enumerate(document.interfaces):
        yield Parameter.of(f"net.{number}.name", item.target or f"eth{number}")
        for name, value in _counts(summary, number).items():
            if value >= 0:
                yield Parameter.of(f"net.{number}.{name.replace('_', '.')}", value)


def _blocks(document: DomainXml) -> Iterator[Parameter]:
    yield _uint("block.count", len(document.disks))
    for number, disk in enumerate(document.disks):
        yield Parameter.of(f"block.{number}.name", disk.target or f"vd{number}")
        if disk.path is None:
            continue
        yield Parameter.of(f"block.{number}.path", disk.path)
        sizes = _sizes(disk.path)
        for name, value in sizes.items():
            yield Parameter.of(f"block.{number}.{name}", value)


@handles("DOMAIN_INTERFACE_STATS")
async def interface_stats(context: Context, domain: DomainHandle, device: str) -> Results:
    found = await find_active(context, domain)

    def look(host: Host) -> Results:
        document = definitions.xml(host, found)
        for number, item in enumerate(document.interfaces):
            if device in (item.target, item.mac, item.alias):
                return dict(_counts(host.machine(found.name).inspect(), number))
        text = f"invalid path, '{device}' is not a known interface"
        raise RefusedError(ErrorCode.INVALID_ARG, text)

    return await context.work(look, context.manager.host)


def _counts(summary: MachineSummary, number: int) -> dict[str, int]:
    """Return an interface's counts, as the guest sees them."""
    nets: Any = summary.get("stats", {}).get("net", {})
    counted: Any = nets.get(f"eth{number}", {})
    return {
        "rx_bytes": int(counted.get("received_bytes", _UNKNOWN)),
        "rx_packets": int(counted.get("received", _UNKNOWN)),
        "rx_errs": 0,
        "rx_drop": int(counted.get("dropped", _UNKNOWN)),
        "tx_bytes": int(counted.get("sent_bytes", _UNKNOWN)),
        "tx_packets": int(counted.get("sent", _UNKNOWN)),
        "tx_errs": 0,
        "tx_drop": 0,
    }


@handles("DOMAIN_MEMORY_STATS")
async def memory_stats(context: Context, domain: DomainHandle, most: int, flags: int) -> Results:
    found = await find_active(context, domain)
    summary = await context.act("inspect", {}, found.name)
    memory = int(summary["config"].get("memory", 0)) // KIB
    told = [
        MemoryStatistic(int(MemoryTag.ACTUAL_BALLOON), memory),
        MemoryStatistic(int(MemoryTag.RSS), _resident(found)),
    ]
    return {"stats": told[:most]}


@handles("DOMAIN_GET_BLOCK_INFO")
async def block_info(context: Context, domain: DomainHandle, path: str, flags: int) -> Results:
    found = await find(context, domain)

    def look(host: Host) -> Results:
        for disk in definitions.xml(host, found).disks:
            if path in (disk.path, disk.target) and disk.path is not None:
                return dict(_sizes(disk.path))
        text = f"invalid path {path} not assigned to domain"
        raise RefusedError(ErrorCode.INVALID_ARG, text)

    return await context.work(look, context.manager.host)


@handles("DOMAIN_INTERFACE_ADDRESSES")
async def interface_addresses(
    context: Context, domain: DomainHandle, source: int, flags: int
) -> Results:
    found = await find_active(context, domain)
    if source == AddressSource.AGENT:
        output = await context.output(found.name, list(guestagent.INTERFACES))
        return {"interfaces": list(guestagent.interfaces(output))}
    summary = await context.act("inspect", {}, found.name)
    members = {
        member["mac"]: (member["address"], network["subnet"])
        for network in await context.act("networks", {})
        for member in network["machines"]
        if member["name"] == found.name
    }
    told = []
    for number, device in enumerate(_nets(summary)):
        mac = device.get("mac")
        address, subnet = members.get(mac, ("", ""))
        if address:
            prefix = int(subnet.partition("/")[2] or 24)
            known = [IpAddress(int(AddressType.IPV4), address, prefix)]
            told.append(GuestInterface(f"eth{number}", mac, known))
    return {"interfaces": told}


def _nets(summary: MachineSummary) -> list[dict[str, Any]]:
    devices = summary["config"].get("devices", ())
    return [device for device in devices if device.get("kind") == "net"]


def _sizes(path: str) -> dict[str, int]:
    """Return what an image takes and holds, in bytes."""
    from ringzero.disk import open_disk

    status = Path(path).stat() if Path(path).exists() else None
    if status is None:
        raise RefusedError(ErrorCode.OPERATION_FAILED, f"cannot stat file '{path}'")
    capacity = status.st_size
    try:
        with open_disk(path, read_only=True, backing=False, lock=False, sync=False) as disk:
            capacity = disk.size
    except RingzeroError:
        # What cannot be read as an image has the size of its file.
        pass
    return {
        "allocation": status.st_blocks * _SECTOR,
        "capacity": capacity,
        "physical": status.st_size,
    }


def _resident(domain: Domain) -> int:
    """Return what a domain's process has in memory, in KiB."""
    found = usage(domain.pid) if domain.pid is not None else None
    return found.resident // KIB if found is not None else 0


def _int(name: str, value: int) -> Parameter:
    return Parameter(name, ParameterKind.INT, value)


def _uint(name: str, value: int) -> Parameter:
    return Parameter(name, ParameterKind.UINT, value)
