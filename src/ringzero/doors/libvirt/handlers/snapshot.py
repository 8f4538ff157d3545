"""Snapshots of domains: made, listed as a tree, gone back to, removed."""

from __future__ import annotations

import contextlib
import time

from ringzero.api.values import Status
from ringzero.control.host.client import Host
from ringzero.doors.libvirt import inventory, saves, snapshots
from ringzero.doors.libvirt.constants import (
    SnapshotCreate,
    SnapshotDelete,
    SnapshotList,
    SnapshotRevert,
)
from ringzero.doors.libvirt.context import Context, RefusedError, Results, handles
from ringzero.doors.libvirt.faults import ErrorCode, ErrorDomain
from ringzero.doors.libvirt.inventory import Domain
from ringzero.doors.libvirt.lists import selected
from ringzero.doors.libvirt.snapshots import DomainSnapshot, DomainSnapshots, Note
from ringzero.doors.libvirt.values import DomainHandle, SnapshotHandle
from ringzero.doors.libvirt.xml.snapshot import SNAPSHOT, SnapshotXml
from ringzero.errors import InvalidValueError, RingzeroError

# What cannot be asked for when one is made.
_NOT_MADE = {
    SnapshotCreate.REDEFINE: "a snapshot cannot be described anew: what it is stands in it",
    SnapshotCreate.NO_METADATA: "a snapshot without metadata is none: leave out --no-metadata",
    SnapshotCreate.REUSE_EXT: "snapshots have no files of the client's: leave out --reuse-external",
    SnapshotCreate.QUIESCE: "file systems are not frozen for a snapshot; one with memory needs no"
    " --quiesce",
}


async def look(context: Context, handle: DomainHandle) -> DomainSnapshots:
    """Return the snapshots of the domain that a client means. Raises RingzeroError."""

    def find_all(host: Host) -> DomainSnapshots:
        return snapshots.of(host, inventory.by_handle(host, handle))

    return await context.work(find_all, context.manager.host)


def handle_of(found: DomainSnapshot, domain: Domain) -> SnapshotHandle:
    """Return what stands for a snapshot on the wire."""
    return SnapshotHandle(found.name, domain.handle)


# ---- which there are ------------------------------------------------------------


def _chosen(
    every: DomainSnapshots, among: list[DomainSnapshot], flags: int
) -> list[DomainSnapshot]:
    """Return those of the snapshots `among` all that the flags of a list ask for."""
    parents = {found.parent for found in every.all}
    return [
        found
        for found in among
        if selected(
            flags,
            {
                SnapshotList.LEAVES: found.name not in parents,
                SnapshotList.NO_LEAVES: found.name in parents,
            },
            {SnapshotList.METADATA: True, SnapshotList.NO_METADATA: False},
            {
                SnapshotList.INACTIVE: found.state == snapshots.SHUTOFF,
                SnapshotList.ACTIVE: found.memory,
                SnapshotList.DISK_ONLY: found.state == snapshots.DISKS,
            },
            {SnapshotList.INTERNAL: True, SnapshotList.EXTERNAL: False},
        )
    ]


async def _of_domain(
    context: Context, handle: DomainHandle, flags: int
) -> tuple[Domain, list[DomainSnapshot]]:
    every = await look(context, handle)
    among = [s for s in every.all if s.parent is None or not flags & SnapshotList.ROOTS]
    return every.domain, _chosen(every, among, flags)


async def _below(
    context: Context, handle: SnapshotHandle, flags: int
) -> tuple[Domain, list[DomainSnapshot]]:
    every = await look(context, handle.domain)
    name = every.find(handle.name).name
    deep = flags & SnapshotList.DESCENDANTS
    among = every.descendants(name) if deep else every.children(name)
    return every.domain, _chosen(every, among, flags)


@handles("DOMAIN_LIST_ALL_SNAPSHOTS")
async def list_all(
    context: Context, domain: DomainHandle, need_results: int, flags: int
) -> Results:
    owner, found = await _of_domain(context, domain, flags)
    told = [handle_of(each, owner) for each in found]
    return {"snapshots": told if need_results else [], "ret": len(told)}


@handles("DOMAIN_SNAPSHOT_NUM")
async def num(context: Context, domain: DomainHandle, flags: int) -> Results:
    return {"num": len((await _of_domain(context, domain, flags))[1])}


@handles("DOMAIN_SNAPSHOT_LIST_NAMES")
async def list_names(context: Context, domain: DomainHandle, most: int, flags: int) -> Results:
    _, found = await _of_domain(context, domain, flags)
    return {"names": [each.name for each in found][: max(0, most)]}


@handles("DOMAIN_SNAPSHOT_LIST_ALL_CHILDREN")
async def list_all_children(
    context: Context, snapshot: SnapshotHandle, need_results: int, flags: int
) -> Results:
    owner, found = await _below(context, snapshot, flags)
    told = [handle_of(each, owner) for each in found]
    return {"snapshots": told if need_results else [], "ret": len(told)}


@handles("DOMAIN_SNAPSHOT_NUM_CHILDREN")
async def num_children(context: Context, snapshot: SnapshotHandle, flags: int) -> Results:
    return {"num": len((await _below(context, snapshot, flags))[1])}


@handles("DOMAIN_SNAPSHOT_LIST_CHILDREN_NAMES")
async def list_children_names(
    context: Context, snapshot: SnapshotHandle, most: int, flags: int
) -> Results:
    _, found = await _below(context, snapshot, flags)
    return {"names": [each.name for each in found][: max(0, most)]}


@handles("DOMAIN_SNAPSHOT_LOOKUP_BY_NAME")
async def lookup_by_name(context: Context, domain: DomainHandle, name: str, flags: int) -> Results:
    every = await look(context, domain)
    return {"snapshot": handle_of(every.find(name), every.domain)}


@handles("DOMAIN_HAS_CURRENT_SNAPSHOT")
async def has_current(context: Context, domain: DomainHandle, flags: int) -> Results:
    return {"result": int((await look(context, domain)).current is not None)}


@handles("DOMAIN_SNAPSHOT_CURRENT")
async def current(context: Context, domain: DomainHandle, flags: int) -> Results:
    every = await look(context, domain)
    if every.current is None:
        raise snapshots.absent("the domain does not have a current snapshot")
    return {"snapshot": handle_of(every.find(every.current), every.domain)}


@handles("DOMAIN_SNAPSHOT_IS_CURRENT")
async def is_current(context: Context, snapshot: SnapshotHandle, flags: int) -> Results:
    every = await look(context, snapshot.domain)
    return {"current": int(every.find(snapshot.name).name == every.current)}


@handles("DOMAIN_SNAPSHOT_HAS_METADATA")
async def has_metadata(context: Context, snapshot: SnapshotHandle, flags: int) -> Results:
    (await look(context, snapshot.domain)).find(snapshot.name)
    return {"metadata": 1}


@handles("DOMAIN_SNAPSHOT_GET_PARENT")
async def get_parent(context: Context, snapshot: SnapshotHandle, flags: int) -> Results:
    every = await look(context, snapshot.domain)
    parent = every.find(snapshot.name).parent
    if parent is None:
        raise snapshots.absent(f"snapshot '{snapshot.name}' does not have a parent")
    return {"snapshot": handle_of(every.find(parent), every.domain)}


@handles("DOMAIN_SNAPSHOT_GET_XML_DESC")
async def get_xml_desc(context: Context, snapshot: SnapshotHandle, flags: int) -> Results:
    every = await look(context, snapshot.domain)
    found = every.find(snapshot.name)

    def tell(host: Host) -> str:
        return SNAPSHOT.render(snapshots.xml(host, every.domain, found))

    return {"xml": await context.work(tell, context.manager.host)}


# ---- made, gone back to, removed ------------------------------------------------


@handles("DOMAIN_SNAPSHOT_CREATE_XML")
async def create_xml(context: Context, domain: DomainHandle, xml: str, flags: int) -> Results:
    for flag, text in _NOT_MADE.items():
        if flags & flag:
            raise _refused(ErrorCode.ARGUMENT_UNSUPPORTED, text)
    made = await context.work(_create, context.manager.host, domain, xml, flags, long=True)
    return {"snapshot": made}


def _create(host: Host, domain: DomainHandle, document: str, flags: int) -> SnapshotHandle:
    wanted = _read(document)
    every = snapshots.of(host, inventory.by_handle(host, domain))
    found = every.domain
    name = wanted.name or str(int(time.time()))
    if any(each.name == name for each in every.all):
        raise _refused(ErrorCode.OPERATION_FAILED, f"domain snapshot {name} already exists")
    memory = found.active and not flags & SnapshotCreate.DISK_ONLY and wanted.memory != "no"
    state = snapshots.SHUTOFF
    if found.active:
        ran = snapshots.PAUSED if found.status is Status.PAUSED else snapshots.RUNNING
        state = ran if memory else snapshots.DISKS
    before = every.find(every.current).id if every.current is not None else ""
    note = Note(name, state, before, snapshots.sent(wanted))
    machine, stored = host.machine(found.name), snapshots.free_name(host, found, name)
    identifier = machine.snapshot(stored, saves.store(), memory=memory)
    try:
        snapshots.note_made(host, found, identifier, note)
    except RingzeroError:
        host.remove_snapshot(stored)
        raise
    if found.active and flags & SnapshotCreate.HALT:
        machine.kill()
    return SnapshotHandle(name, found.handle)


def _read(document: str) -> SnapshotXml:
    """Return what a client wants. Raises RefusedError for what no snapshot of ours can be."""
    try:
        wanted = SNAPSHOT.parse(document)
    except InvalidValueError as fault:
        raise _refused(ErrorCode.XML_ERROR, fault.message) from fault
    if wanted.name and not snapshots.is_name(wanted.name):
        text = (
            f"invalid snapshot name {wanted.name!r}: it is one line, has no '/', and does not "
            "begin with '.'"
        )
        raise _refused(ErrorCode.XML_ERROR, text)
    places = [wanted.memory, *(disk.snapshot for disk in wanted.disks)]
    files = [wanted.memory_file, *(disk.file for disk in wanted.disks)]
    if any(files) or any(place not in (None, "internal", "no") for place in places):
        text = "snapshots lie in ringzero's own store: files for memory or disks are not supported"
        raise _refused(ErrorCode.CONFIG_UNSUPPORTED, text)
    left = [disk.name for disk in wanted.disks if disk.snapshot == "no"]
    if left:
        text = f"a snapshot is of all disks that are written to: {left[0]} cannot be left out"
        raise _refused(ErrorCode.CONFIG_UNSUPPORTED, text)
    return wanted


@handles("DOMAIN_REVERT_TO_SNAPSHOT")
async def revert(context: Context, snapshot: SnapshotHandle, flags: int) -> Results:
    await context.work(_revert, context.manager.host, snapshot, flags, long=True)
    return {}


def _revert(host: Host, handle: SnapshotHandle, flags: int) -> None:
    every = snapshots.of(host, inventory.by_handle(host, handle.domain))
    target, found = every.find(handle.name), every.domain
    state = target.state if target.memory else snapshots.SHUTOFF
    if flags & SnapshotRevert.RUNNING:
        state = snapshots.RUNNING
    elif flags & SnapshotRevert.PAUSED:
        state = snapshots.PAUSED
    machine, directory = host.machine(found.name), target.stored["directory"]
    if state == snapshots.SHUTOFF:
        snapshots.check_disks(host, found, target)
        if found.active:
            machine.kill()
        machine.revert_disks(directory)
    else:
        # One that is to stand still does not run in between where that can be helped.
        halted = state == snapshots.PAUSED and found.status is Status.RUNNING
        if halted:
            machine.pause()
        try:
            machine.revert(directory)
        except RingzeroError:
            if halted:
                with contextlib.suppress(RingzeroError):
                    machine.resume()
            raise
        now = inventory.by_name(host, found.name).status
        if state == snapshots.PAUSED and now is Status.RUNNING:
            machine.pause()
        elif state == snapshots.RUNNING and now is Status.PAUSED:
            machine.resume()
    snapshots.note_current(host, found, target.id)


@handles("DOMAIN_SNAPSHOT_DELETE")
async def delete(context: Context, snapshot: SnapshotHandle, flags: int) -> Results:
    if flags & SnapshotDelete.METADATA_ONLY:
        text = "a snapshot without metadata is none: leave out --metadata"
        raise _refused(ErrorCode.ARGUMENT_UNSUPPORTED, text)
    await context.work(_delete, context.manager.host, snapshot, flags, long=True)
    return {}


def _delete(host: Host, handle: SnapshotHandle, flags: int) -> None:
    every = snapshots.of(host, inventory.by_handle(host, handle.domain))
    target = every.find(handle.name)
    gone = [target] if not flags & SnapshotDelete.CHILDREN_ONLY else []
    if flags & (SnapshotDelete.CHILDREN | SnapshotDelete.CHILDREN_ONLY):
        gone += every.descendants(target.name)
    snapshots.remove(host, every, gone)


def _refused(code: ErrorCode, text: str) -> RefusedError:
    return RefusedError(code, text, ErrorDomain.DOMAIN_SNAPSHOT)
