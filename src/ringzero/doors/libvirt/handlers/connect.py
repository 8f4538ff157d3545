"""Connections: opening them, what the host is, which domains there are."""

from __future__ import annotations

import os
import platform
import socket
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ringzero.api.values import Status
from ringzero.control.host.client import Host
from ringzero.doors.libvirt import inventory, saves, snapshots
from ringzero.doors.libvirt.constants import Feature, ListDomains
from ringzero.doors.libvirt.context import Context, RefusedError, Results, handles
from ringzero.doors.libvirt.faults import ErrorCode, ErrorDomain
from ringzero.doors.libvirt.inventory import Domain
from ringzero.doors.libvirt.lists import selected
from ringzero.doors.libvirt.values import DomainHandle, NodeStatistic
from ringzero.doors.libvirt.xml import capabilities
from ringzero.doors.libvirt.xml.capabilities import HostFacts
from ringzero.errors import RingzeroError
from ringzero.units import KIB
from ringzero.version import __version__

# The version of libvirt whose protocol this is: major * 1,000,000 + minor * 1,000 + release.
_LIBVIRT = 9_000_000
SCHEMES = ("ringzero", "qemu")
# REMOTE_AUTH_NONE: who may connect to the socket may come in.
_NO_AUTH = 0
# VIR_CONNECT_RO: a client that asks for less than the socket gives it, as `virsh -r` does.
_READ_ONLY = 1
_SUPPORTED = (
    Feature.TYPED_PARAM_STRING,
    Feature.PROGRAM_KEEPALIVE,
    Feature.REMOTE_EVENT_CALLBACK,
    Feature.REMOTE_CLOSE_CALLBACK,
    Feature.NETWORK_UPDATE_HAS_CORRECT_ORDER,
)
_ARCHITECTURES = {"amd64": "x86_64"}
_CPUS = ("x86-64-v2", "x86-64-v3", "max")
# MemTotal and its kin (proc_meminfo(5)) by what libvirt calls them, in KiB.
_MEMORY = {"total": "MemTotal", "free": "MemFree", "buffers": "Buffers", "cached": "Cached"}
_MOST_VCPUS = 254


def host_facts() -> HostFacts:
    """Return what the host is."""
    machine = platform.machine()
    return HostFacts(
        uuid=_host_uuid(),
        architecture=_ARCHITECTURES.get(machine, machine),
        processors=os.cpu_count() or 1,
        memory=_meminfo().get("MemTotal", 0) * KIB,
        cpus=_CPUS,
        most_vcpus=_MOST_VCPUS,
    )


@handles("AUTH_LIST")
async def auth_list(context: Context) -> Results:
    return {"types": [_NO_AUTH]}


@handles("CONNECT_OPEN")
async def connect_open(context: Context, name: str | None, flags: int) -> Results:
    scheme = urlsplit(name or "").scheme
    if name and scheme not in SCHEMES:
        text = f"no connection driver available for {name}"
        raise RefusedError(ErrorCode.NO_CONNECT, text, ErrorDomain.NONE)
    context.uri = name or "ringzero:///session"
    if flags & _READ_ONLY:
        context.only_read()
    return {}


@handles(
    "CONNECT_CLOSE",
    "CONNECT_REGISTER_CLOSE_CALLBACK",
    "CONNECT_UNREGISTER_CLOSE_CALLBACK",
    "CONNECT_SET_IDENTITY",
)
async def nothing(context: Context, **_: Any) -> Results:
    return {}


@handles("CONNECT_SUPPORTS_FEATURE")
async def supports_feature(context: Context, feature: int) -> Results:
    return {"supported": int(feature in _SUPPORTED)}


@handles("CONNECT_GET_TYPE")
async def get_type(context: Context) -> Results:
    # Scripts that were written for QEMU look for its name.
    return {"type": "QEMU" if context.uri.startswith("qemu") else "ringzero"}


@handles("CONNECT_GET_URI")
async def get_uri(context: Context) -> Results:
    return {"uri": context.uri}


@handles("CONNECT_GET_VERSION")
async def get_version(context: Context) -> Results:
    major, minor, release = (int(part) for part in __version__.split(".")[:3])
    return {"version": major * 1_000_000 + minor * 1_000 + release}


@handles("CONNECT_GET_LIB_VERSION")
async def get_lib_version(context: Context) -> Results:
    return {"version": _LIBVIRT}


@handles("CONNECT_GET_HOSTNAME")
async def get_hostname(context: Context) -> Results:
    return {"hostname": socket.gethostname()}


@handles("CONNECT_IS_SECURE")
async def is_secure(context: Context) -> Results:
    # A Unix socket, or TLS.
    return {"secure": 1}


@handles("CONNECT_GET_MAX_VCPUS")
async def get_max_vcpus(context: Context, type: str | None) -> Results:
    return {"max_vcpus": _MOST_VCPUS}


@handles("CONNECT_GET_CAPABILITIES")
async def get_capabilities(context: Context) -> Results:
    facts = await context.work(host_facts)
    return {"capabilities": capabilities.capabilities(facts)}


@handles("CONNECT_GET_DOMAIN_CAPABILITIES")
async def get_domain_capabilities(
    context: Context,
    emulatorbin: str | None,
    arch: str | None,
    machine: str | None,
    virttype: str | None,
    flags: int,
) -> Results:
    facts = await context.work(host_facts)
    if arch is not None and arch != facts.architecture:
        text = f"machines of this host are {facts.architecture}, not {arch}"
        raise RefusedError(ErrorCode.INVALID_ARG, text)
    return {"capabilities": capabilities.domain_capabilities(facts, virttype)}


@handles("CONNECT_GET_SYSINFO")
async def get_sysinfo(context: Context, flags: int) -> Results:
    return {"sysinfo": capabilities.system_information(await context.work(_firmware_tables))}


@handles("CONNECT_GET_CPU_MODEL_NAMES")
async def get_cpu_model_names(
    context: Context, arch: str, need_results: int, flags: int
) -> Results:
    return {"models": list(_CPUS) if need_results else [], "ret": len(_CPUS)}


# ---- the host -------------------------------------------------------------------


@handles("NODE_GET_INFO")
async def node_get_info(context: Context) -> Results:
    facts = await context.work(host_facts)
    return {
        "model": facts.architecture.encode()[:31],
        "memory": facts.memory // KIB,
        "cpus": facts.processors,
        "mhz": await context.work(_mhz),
        "nodes": 1,
        "sockets": 1,
        "cores": facts.processors,
        "threads": 1,
    }


@handles("NODE_GET_MEMORY_STATS")
async def node_get_memory_stats(
    context: Context, nparams: int, cell_num: int, flags: int
) -> Results:
    found = await context.work(_meminfo)
    if nparams == 0:
        return {"params": [], "nparams": len(_MEMORY)}
    params = [NodeStatistic(name, found.get(key, 0)) for name, key in _MEMORY.items()]
    return {"params": params, "nparams": len(_MEMORY)}


@handles("NODE_GET_CPU_STATS")
async def node_get_cpu_stats(context: Context, cpu_num: int, nparams: int, flags: int) -> Results:
    found = await context.work(_cpu_times, cpu_num)
    if nparams == 0:
        return {"params": [], "nparams": len(found)}
    return {"params": found, "nparams": len(found)}


@handles("NODE_GET_FREE_MEMORY")
async def node_get_free_memory(context: Context) -> Results:
    return {"free": (await context.work(_meminfo)).get("MemFree", 0) * KIB}


@handles("NODE_GET_CELLS_FREE_MEMORY")
async def node_get_cells_free_memory(context: Context, start_cell: int, most: int) -> Results:
    free = (await context.work(_meminfo)).get("MemFree", 0) * KIB
    return {"cells": [free] if start_cell == 0 and most > 0 else []}


@handles("NODE_GET_CPU_MAP")
async def node_get_cpu_map(
    context: Context, need_map: int, need_online: int, flags: int
) -> Results:
    count = os.cpu_count() or 1
    there = ((1 << count) - 1).to_bytes(-(-count // 8), "little")
    return {"cpumap": there if need_map else b"", "online": count, "ret": count}


@handles("NODE_NUM_OF_DEVICES")
async def node_num_of_devices(context: Context, cap: str | None, flags: int) -> Results:
    return {"num": 0}


@handles("NODE_LIST_DEVICES")
async def node_list_devices(context: Context, cap: str | None, most: int, flags: int) -> Results:
    return {"names": []}


@handles("CONNECT_LIST_ALL_NODE_DEVICES")
async def list_all_node_devices(context: Context, need_results: int, flags: int) -> Results:
    return {"devices": [], "ret": 0}


@handles("CONNECT_NUM_OF_INTERFACES", "CONNECT_NUM_OF_DEFINED_INTERFACES")
async def num_of_interfaces(context: Context) -> Results:
    return {"num": 0}


@handles("CONNECT_LIST_INTERFACES", "CONNECT_LIST_DEFINED_INTERFACES")
async def list_interfaces(context: Context, most: int) -> Results:
    return {"names": []}


@handles("CONNECT_LIST_ALL_INTERFACES")
async def list_all_interfaces(context: Context, need_results: int, flags: int) -> Results:
    return {"interfaces": [], "ret": 0}


@handles("CONNECT_LIST_ALL_SECRETS")
async def list_all_secrets(context: Context, need_results: int, flags: int) -> Results:
    return {"secrets": [], "ret": 0}


@handles("CONNECT_LIST_ALL_NWFILTERS")
async def list_all_nwfilters(context: Context, need_results: int, flags: int) -> Results:
    return {"filters": [], "ret": 0}


# ---- which domains there are ----------------------------------------------------


@handles("CONNECT_LIST_ALL_DOMAINS")
async def list_all_domains(context: Context, need_results: int, flags: int) -> Results:
    def choose(host: Host) -> list[DomainHandle]:
        found = inventory.domains(host)
        return [d.handle for d in found if _wanted(d, flags) and _keeps(host, d, flags)]

    chosen = await context.work(choose, context.manager.host)
    return {"domains": chosen if need_results else [], "ret": len(chosen)}


@handles("CONNECT_NUM_OF_DOMAINS")
async def num_of_domains(context: Context) -> Results:
    found = await context.work(inventory.domains, context.manager.host)
    return {"num": sum(domain.active for domain in found)}


@handles("CONNECT_LIST_DOMAINS")
async def list_domains(context: Context, most: int) -> Results:
    found = await context.work(inventory.domains, context.manager.host)
    ids = [domain.handle.id for domain in found if domain.handle.id != inventory.NO_ID]
    return {"ids": ids[: max(0, most)]}


@handles("CONNECT_NUM_OF_DEFINED_DOMAINS")
async def num_of_defined_domains(context: Context) -> Results:
    found = await context.work(inventory.domains, context.manager.host)
    return {"num": sum(not domain.active for domain in found)}


@handles("CONNECT_LIST_DEFINED_DOMAINS")
async def list_defined_domains(context: Context, most: int) -> Results:
    found = await context.work(inventory.domains, context.manager.host)
    names = [domain.name for domain in found if not domain.active]
    return {"names": names[: max(0, most)]}


@handles("DOMAIN_LOOKUP_BY_NAME")
async def lookup_by_name(context: Context, name: str) -> Results:
    found = await context.work(inventory.by_name, context.manager.host, name)
    return {"domain": found.handle}


@handles("DOMAIN_LOOKUP_BY_UUID")
async def lookup_by_uuid(context: Context, uuid: bytes) -> Results:
    found = await context.work(inventory.by_uuid, context.manager.host, uuid)
    return {"domain": found.handle}


@handles("DOMAIN_LOOKUP_BY_ID")
async def lookup_by_id(context: Context, id: int) -> Results:
    found = await context.work(inventory.by_number, context.manager.host, id)
    return {"domain": found.handle}


def _wanted(domain: Domain, flags: int) -> bool:
    """Whether a domain is in the states that the flags name."""
    paused = domain.status is Status.PAUSED
    return selected(
        flags,
        {ListDomains.ACTIVE: domain.active, ListDomains.INACTIVE: not domain.active},
        {
            ListDomains.RUNNING: domain.active and not paused,
            ListDomains.PAUSED: paused,
            ListDomains.SHUTOFF: not domain.active,
        },
    )


def _keeps(host: Host, domain: Domain, flags: int) -> bool:
    """Whether there is of a domain what the flags name: snapshots, a managed save."""
    groups: list[dict[int, bool]] = []
    try:
        if flags & (ListDomains.MANAGEDSAVE | ListDomains.NO_MANAGEDSAVE):
            saved = saves.find(host, domain) is not None
            groups.append({ListDomains.MANAGEDSAVE: saved, ListDomains.NO_MANAGEDSAVE: not saved})
        if flags & (ListDomains.HAS_SNAPSHOT | ListDomains.NO_SNAPSHOT):
            some = bool(snapshots.of(host, domain).all)
            groups.append({ListDomains.HAS_SNAPSHOT: some, ListDomains.NO_SNAPSHOT: not some})
    except RingzeroError:
        # One that has just gone.
        return False
    return selected(flags, *groups)


# ---- files of the host ----------------------------------------------------------


def _host_uuid() -> str:
    try:
        return str(uuid.UUID(Path("/etc/machine-id").read_text().strip()))
    except (OSError, ValueError):
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, socket.gethostname()))


def _meminfo() -> dict[str, int]:
    """Return /proc/meminfo, in KiB."""
    found = dict[str, int]()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        name, _, value = line.partition(":")
        if value.split():
            found[name] = int(value.split()[0])
    return found


def _mhz() -> int:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(int(float(line.split(":")[1])) for line in lines if line[:7] == "cpu MHz")
    except (OSError, ValueError, StopIteration):
        return 0


def _cpu_times(number: int) -> list[NodeStatistic]:
    """Return the times of one CPU, or of all for -1, in nanoseconds (proc_stat(5))."""
    name = "cpu" if number < 0 else f"cpu{number}"
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        fields = next(line.split()[1:] for line in lines if line.split()[0] == name)
    except (OSError, StopIteration):
        text = f"there is no CPU {number}"
        raise RefusedError(ErrorCode.INVALID_ARG, text) from None
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    user, nice, system, idle, wait = (int(field) * tick for field in fields[:5])
    return [
        NodeStatistic("kernel", system),
        NodeStatistic("user", user + nice),
        NodeStatistic("idle", idle),
        NodeStatistic("iowait", wait),
    ]


def _firmware_tables() -> dict[str, dict[str, str]]:
    """Return what the host's firmware says of it (SMBIOS), as far as this user may know."""
    places = {
        "system": {"manufacturer": "sys_vendor", "product": "product_name"},
        "bios": {"vendor": "bios_vendor", "version": "bios_version"},
    }
    found: dict[str, dict[str, str]] = {}
    for table, names in places.items():
        for name, file in names.items():
            try:
                text = (Path("/sys/class/dmi/id") / file).read_text().strip()
            except OSError:
                continue
            found.setdefault(table, {})[name] = text
    return found
