"""Domains: their life, what they are, and what is noted of them."""

from __future__ import annotations

from typing import Any

from ringzero.api.values import MachineSummary, Status
from ringzero.control.host.client import Host, RemoteMachine
from ringzero.doors.libvirt import definitions, inventory, saves, snapshots, transient
from ringzero.doors.libvirt.constants import (
    Affect,
    MetadataType,
    ShutoffReason,
    StartFlags,
    UndefineFlags,
    XmlFlags,
)
from ringzero.doors.libvirt.context import Context, RefusedError, Results, handles
from ringzero.doors.libvirt.faults import ErrorCode
from ringzero.doors.libvirt.inventory import Domain
from ringzero.doors.libvirt.limits import LIMITS
from ringzero.doors.libvirt.values import DomainHandle, Vcpu
from ringzero.doors.libvirt.xml.domain import DOMAIN
from ringzero.host.process import usage
from ringzero.units import KIB

# How long a guest that was asked to may take to switch itself off, in seconds: a client asks again,
# or destroys it.
_NEVER = 86_400.0
_SECOND = 1_000_000_000
# VIR_VCPU_OFFLINE, VIR_VCPU_RUNNING; and a processor that no host's is meant by.
_OFFLINE, _RUNNING, _ANY_CPU = 0, 1, -1


async def find(context: Context, handle: DomainHandle) -> Domain:
    """Return the domain that a client means. Raises RefusedError."""
    return await context.work(inventory.by_handle, context.manager.host, handle)


async def find_active(context: Context, handle: DomainHandle) -> Domain:
    """Return a domain that runs. Raises RefusedError."""
    found = await find(context, handle)
    if not found.active:
        text = "Requested operation is not valid: domain is not running"
        raise RefusedError(ErrorCode.OPERATION_INVALID, text)
    return found


def affected(domain: Domain, flags: int) -> tuple[bool, bool]:
    """Return whether a change is of what runs, and whether of what it is from its next start on.

    Raises RefusedError.
    """
    asked = flags & (Affect.LIVE | Affect.CONFIG)
    live = bool(asked & Affect.LIVE) or (not asked and domain.active)
    if live and not domain.active:
        text = "Requested operation is not valid: domain is not running"
        raise RefusedError(ErrorCode.OPERATION_INVALID, text)
    return live, bool(asked & Affect.CONFIG) or not live


async def facts(context: Context, handle: DomainHandle) -> tuple[Domain, MachineSummary]:
    """Return a domain, and what its files say."""

    def look(host: Host) -> tuple[Domain, MachineSummary]:
        found = inventory.by_handle(host, handle)
        return found, host.machine(found.name).directory.summary()

    return await context.work(look, context.manager.host)


# ---- life -----------------------------------------------------------------------


@handles("DOMAIN_DEFINE_XML")
async def define_xml(context: Context, xml: str) -> Results:
    return await define_xml_flags(context, xml, 0)


@handles("DOMAIN_DEFINE_XML_FLAGS")
async def define_xml_flags(context: Context, xml: str, flags: int) -> Results:
    found, wanted = await context.work(definitions.define, context.manager.host, xml)
    context.warn(found.name, wanted.warnings)
    return {"domain": found.handle}


@handles("DOMAIN_CREATE_XML")
async def create_xml(context: Context, xml: str, flags: int) -> Results:
    def create(host: Host) -> Domain:
        found, wanted = definitions.define(host, xml, transient=True)
        context.warn(found.name, wanted.warnings)
        try:
            _start(host.machine(found.name), flags)
        except BaseException:
            transient.discard(host, found.name)
            raise
        return inventory.by_name(host, found.name)

    found = await context.work(create, context.manager.host)
    return {"domain": found.handle}


@handles("DOMAIN_CREATE")
async def create(context: Context, domain: DomainHandle) -> Results:
    await create_with_flags(context, domain, 0)
    return {}


@handles("DOMAIN_CREATE_WITH_FLAGS")
async def create_with_flags(context: Context, domain: DomainHandle, flags: int) -> Results:
    found = await find(context, domain)
    if found.active:
        text = "Requested operation is not valid: domain is already running"
        raise RefusedError(ErrorCode.OPERATION_INVALID, text)

    def begin(host: Host) -> Domain:
        if flags & StartFlags.FORCE_BOOT:
            saves.discard(host, found)
        if saves.find(host, found) is not None:
            saves.resume(host, found, True if flags & StartFlags.PAUSED else None)
        else:
            _start(host.machine(found.name), flags)
        return inventory.by_name(host, found.name)

    started = await context.work(begin, context.manager.host)
    return {"domain": started.handle}


def _start(machine: RemoteMachine, flags: int) -> None:
    machine.start()
    if flags & StartFlags.PAUSED:
        machine.pause()


@handles("DOMAIN_SHUTDOWN")
async def shutdown(context: Context, domain: DomainHandle) -> Results:
    return await shutdown_flags(context, domain, 0)


@handles("DOMAIN_SHUTDOWN_FLAGS")
async def shutdown_flags(context: Context, domain: DomainHandle, flags: int) -> Results:
    found = await find_active(context, domain)
    # The guest takes its time; a client looks at the state meanwhile.
    context.manager.jobs.begin("stop", {"timeout": _NEVER}, found.name, caller=context.caller)
    return {}


@handles("DOMAIN_DESTROY")
async def destroy(context: Context, domain: DomainHandle) -> Results:
    return await destroy_flags(context, domain, 0)


@handles("DOMAIN_DESTROY_FLAGS")
async def destroy_flags(context: Context, domain: DomainHandle, flags: int) -> Results:
    found = await find_active(context, domain)
    await context.act("kill", {}, found.name)
    return {}


@handles("DOMAIN_SUSPEND")
async def suspend(context: Context, domain: DomainHandle) -> Results:
    found = await find_active(context, domain)
    if found.status is not Status.PAUSED:
        await context.act("pause", {}, found.name)
    return {}


@handles("DOMAIN_RESUME")
async def resume(context: Context, domain: DomainHandle) -> Results:
    found = await find_active(context, domain)
    if found.status is not Status.RUNNING:
        await context.act("resume", {}, found.name)
    return {}


@handles("DOMAIN_REBOOT", "DOMAIN_RESET")
async def reboot(context: Context, domain: DomainHandle, flags: int) -> Results:
    found = await find_active(context, domain)
    context.manager.jobs.begin("restart", {"timeout": 60.0}, found.name, caller=context.caller)
    return {}


@handles("DOMAIN_UNDEFINE")
async def undefine(context: Context, domain: DomainHandle) -> Results:
    return await undefine_flags(context, domain, 0)


@handles("DOMAIN_UNDEFINE_FLAGS")
async def undefine_flags(context: Context, domain: DomainHandle, flags: int) -> Results:
    found = await find(context, domain)

    def undefine(host: Host) -> None:
        machine = host.machine(found.name)
        saved = saves.find(host, found) is not None
        if saved and not flags & UndefineFlags.MANAGED_SAVE:
            raise _invalid("Refusing to undefine while domain managed save image exists")
        count = len(snapshots.of(host, found).all)
        if count and not found.active and not flags & UndefineFlags.SNAPSHOTS_METADATA:
            raise _invalid(f"cannot delete inactive domain with {count} snapshots")
        saves.discard(host, found)
        if found.active:
            # It goes on, and is gone when it has ended.
            machine.describe(metadata={transient.TRANSIENT: "yes"})
            # It may have ended before that was noted.
            transient.remove(host, found.name)
        else:
            machine.remove()

    await context.work(undefine, context.manager.host)
    return {}


@handles("DOMAIN_RENAME")
async def rename(
    context: Context, domain: DomainHandle, new_name: str | None, flags: int
) -> Results:
    found = await find(context, domain)
    await context.act("rename", {"name": new_name or ""}, found.name)
    return {"retcode": 0}


# ---- what it is -----------------------------------------------------------------


@handles("DOMAIN_GET_XML_DESC")
async def get_xml_desc(context: Context, domain: DomainHandle, flags: int) -> Results:
    found = await find(context, domain)
    inactive = bool(flags & (XmlFlags.INACTIVE | XmlFlags.MIGRATABLE))

    def tell(host: Host) -> str:
        return DOMAIN.render(definitions.xml(host, found, inactive=inactive))

    return {"xml": await context.work(tell, context.manager.host)}


@handles("DOMAIN_GET_STATE")
async def get_state(context: Context, domain: DomainHandle, flags: int) -> Results:
    found = await context.work(inventory.seen, context.manager.host, domain)
    reason = found.reason
    # Only an end that was no end of the guest's own may be that of a save.
    hard = reason in (ShutoffReason.DESTROYED, ShutoffReason.CRASHED) and not found.domain.active
    if hard and await context.work(saves.is_end, context.manager.host, found.domain.name):
        reason = ShutoffReason.SAVED
    return {"state": int(found.state), "reason": int(reason)}


@handles("DOMAIN_GET_INFO")
async def get_info(context: Context, domain: DomainHandle) -> Results:
    found, summary = await facts(context, domain)
    memory = int(summary["config"].get("memory", 0)) // KIB
    return {
        "state": int(inventory.state(summary)[0]),
        "max_memory": memory,
        "memory": memory,
        "vcpus": int(summary["config"].get("cpus", 1)),
        "cpu_time": cpu_time(found),
    }


@handles("DOMAIN_GET_OS_TYPE")
async def get_os_type(context: Context, domain: DomainHandle) -> Results:
    await find(context, domain)
    return {"type": "hvm"}


@handles("DOMAIN_IS_ACTIVE")
async def is_active(context: Context, domain: DomainHandle) -> Results:
    return {"active": int((await find(context, domain)).active)}


@handles("DOMAIN_IS_PERSISTENT")
async def is_persistent(context: Context, domain: DomainHandle) -> Results:
    found = await find(context, domain)
    notes = await context.act("metadata", {}, found.name)
    return {"persistent": int(transient.TRANSIENT not in notes["elements"])}


@handles("DOMAIN_IS_UPDATED")
async def is_updated(context: Context, domain: DomainHandle) -> Results:
    found, summary = await facts(context, domain)
    coming = await context.act("next", {}, found.name)
    return {"updated": int(found.active and coming != summary["config"])}


@handles("DOMAIN_GET_MAX_MEMORY")
async def get_max_memory(context: Context, domain: DomainHandle) -> Results:
    _, summary = await facts(context, domain)
    return {"memory": int(summary["config"].get("memory", 0)) // KIB}


@handles("DOMAIN_GET_MAX_VCPUS")
async def get_max_vcpus(context: Context, domain: DomainHandle) -> Results:
    _, summary = await facts(context, domain)
    return {"num": int(summary["config"].get("cpus", 1))}


@handles("DOMAIN_GET_VCPUS_FLAGS")
async def get_vcpus_flags(context: Context, domain: DomainHandle, flags: int) -> Results:
    found, summary = await facts(context, domain)
    if flags & Affect.LIVE and not found.active:
        text = "Requested operation is not valid: domain is not running"
        raise RefusedError(ErrorCode.OPERATION_INVALID, text)
    tree = summary["config"]
    if flags & Affect.CONFIG:
        tree = await context.act("next", {}, found.name)
    return {"num": int(tree.get("cpus", 1))}


@handles("DOMAIN_GET_VCPUS")
async def get_vcpus(context: Context, domain: DomainHandle, most: int, maplen: int) -> Results:
    found = await find_active(context, domain)
    summary = await context.act("inspect", {}, found.name)
    count = min(int(summary["config"].get("cpus", 1)), max(0, most))
    share = cpu_time(found) // max(1, count)
    if count * max(0, maplen) > LIMITS["CPUMAPS"]:
        raise RefusedError(ErrorCode.INVALID_ARG, f"maps of {maplen} bytes for {count} processors")
    everywhere = b"\xff" * max(0, maplen if count else 0)
    return {
        "info": [Vcpu(number, _RUNNING, share, _ANY_CPU) for number in range(count)],
        "cpumaps": everywhere * count,
    }


@handles("DOMAIN_GET_JOB_INFO")
async def get_job_info(context: Context, domain: DomainHandle) -> Results:
    await find(context, domain)
    names = (
        *("time_elapsed", "time_remaining", "data_total", "data_processed", "data_remaining"),
        *("mem_total", "mem_processed", "mem_remaining"),
        *("file_total", "file_processed", "file_remaining"),
    )
    return {"type": 0, **dict.fromkeys(names, 0)}


@handles("DOMAIN_GET_MESSAGES")
async def get_messages(context: Context, domain: DomainHandle, flags: int) -> Results:
    await find(context, domain)
    return {"messages": []}


@handles("DOMAIN_GET_HOSTNAME")
async def get_hostname(context: Context, domain: DomainHandle, flags: int) -> Results:
    found = await find_active(context, domain)
    output = await context.output(found.name, ["hostname"])
    return {"hostname": output.strip()}


# ---- settings -------------------------------------------------------------------


@handles("DOMAIN_GET_AUTOSTART")
async def get_autostart(context: Context, domain: DomainHandle) -> Results:
    found = await find(context, domain)
    notes = await context.act("metadata", {}, found.name)
    return {"autostart": int(notes["autostart"])}


@handles("DOMAIN_SET_AUTOSTART")
async def set_autostart(context: Context, domain: DomainHandle, autostart: int) -> Results:
    found = await find(context, domain)
    await context.act("describe", {"autostart": bool(autostart)}, found.name)
    return {}


@handles("DOMAIN_SET_VCPUS")
async def set_vcpus(context: Context, domain: DomainHandle, nvcpus: int) -> Results:
    return await set_vcpus_flags(context, domain, nvcpus, Affect.LIVE)


@handles("DOMAIN_SET_VCPUS_FLAGS")
async def set_vcpus_flags(
    context: Context, domain: DomainHandle, nvcpus: int, flags: int
) -> Results:
    await _set(context, domain, flags, "cpus", nvcpus, "processors")
    return {}


@handles("DOMAIN_SET_MEMORY", "DOMAIN_SET_MAX_MEMORY")
async def set_memory(context: Context, domain: DomainHandle, memory: int) -> Results:
    return await set_memory_flags(context, domain, memory, Affect.CURRENT)


@handles("DOMAIN_SET_MEMORY_FLAGS")
async def set_memory_flags(
    context: Context, domain: DomainHandle, memory: int, flags: int
) -> Results:
    await _set(context, domain, flags, "memory", memory * KIB, "memory")
    return {}


async def _set(
    context: Context, handle: DomainHandle, flags: int, field: str, value: int, noun: str
) -> None:
    """Change a number of a description; what runs keeps what it began with."""
    found = await find(context, handle)
    live, later = affected(found, flags)
    now = (await context.act("inspect", {}, found.name))["config"] if live else {}
    if live and now.get(field) != value:
        text = f"the {noun} of a machine that runs cannot change; --config changes its next start"
        raise RefusedError(ErrorCode.OPERATION_UNSUPPORTED, text)
    if later:
        tree = await context.act("next", {}, found.name)
        anew = {**tree, field: value}
        await context.work(definitions.change, context.manager.host, found.name, anew)


@handles("DOMAIN_GET_METADATA")
async def get_metadata(
    context: Context, domain: DomainHandle, type: int, uri: str | None, flags: int
) -> Results:
    found = await find(context, domain)
    notes = await context.act("metadata", {}, found.name)
    text: Any = {
        MetadataType.DESCRIPTION: notes["description"],
        MetadataType.TITLE: notes["title"],
    }.get(MetadataType(type) if type in tuple(MetadataType) else MetadataType.ELEMENT)
    if type == MetadataType.ELEMENT:
        text = notes["elements"].get(f"libvirt:{uri}")
    if not text:
        text = "metadata not found: Requested metadata element is not present"
        raise RefusedError(ErrorCode.NO_DOMAIN_METADATA, text)
    return {"metadata": text}


@handles("DOMAIN_SET_METADATA")
async def set_metadata(
    context: Context,
    domain: DomainHandle,
    type: int,
    metadata: str | None,
    key: str | None,
    uri: str | None,
    flags: int,
) -> Results:
    found = await find(context, domain)
    if type == MetadataType.TITLE:
        given: dict[str, Any] = {"title": metadata or ""}
    elif type == MetadataType.DESCRIPTION:
        given = {"description": metadata or ""}
    else:
        given = {"metadata": {f"libvirt:{uri}": metadata}}
    await context.act("describe", given, found.name)
    return {}


def _invalid(text: str) -> RefusedError:
    text = f"Requested operation is not valid: {text}"
    return RefusedError(ErrorCode.OPERATION_INVALID, text)


def cpu_time(domain: Domain) -> int:
    """Return what a domain's process has used of CPUs, in nanoseconds."""
    found = usage(domain.pid) if domain.pid is not None else None
    return int(found.seconds * _SECOND) if found is not None else 0
