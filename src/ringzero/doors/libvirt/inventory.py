"""Machines as domains: found by name, UUID or number, with what is asked of them most.

A domain's number is that of its machine's process: it is the same for whoever asks, and no daemon
has to remember it.

A client that lists domains asks for each one's state by itself. What a machine's files say is kept
here, therefore, as long as they are the same files: whoever changes one replaces it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ringzero.api.values import ExitRecord, MachineSummary, Status
from ringzero.config.device import NAME
from ringzero.control.host import description
from ringzero.control.host.client import Host
from ringzero.control.host.directory import (
    EXIT,
    MACHINE,
    OF_THE_PROCESS,
    PROCESS,
    STATUS,
    MachineDirectory,
)
from ringzero.control.host.notes import METADATA, NEXT
from ringzero.doors.libvirt.constants import (
    DomainState,
    PausedReason,
    RunningReason,
    ShutoffReason,
)
from ringzero.doors.libvirt.context import RefusedError
from ringzero.doors.libvirt.faults import ErrorCode
from ringzero.doors.libvirt.values import DomainHandle, uuid_bytes, uuid_text
from ringzero.errors import RingzeroError
from ringzero.records import record

# A domain that does not run has no number.
NO_ID = -1


@record
class Domain:
    """A machine as clients see it."""

    name: str
    uuid: bytes
    status: Status
    pid: int | None

    @property
    def handle(self) -> DomainHandle:
        """What stands for it on the wire."""
        running = self.status.alive and self.pid is not None
        return DomainHandle(self.name, self.uuid, self.pid if running and self.pid else NO_ID)

    @property
    def active(self) -> bool:
        """Whether it runs, in whatever state."""
        return self.status.alive


@record
class Seen:
    """A domain, its state and the reason of that (virDomainGetState)."""

    domain: Domain
    state: DomainState
    reason: int


# What tells that a machine's files are those that were read: of each its inode, size and time of
# change, None where there is none; and whether the machine's lock is held.
Mark = tuple[tuple[int, int, int] | bool | None, ...]
_FILES = (MACHINE, NEXT, METADATA, STATUS, PROCESS, EXIT)
# Files that changed so lately may change again with the same time, in nanoseconds: the kernel's
# clock for files ticks every 10 ms at most.
_UNSETTLED = 50_000_000
# How many machines are remembered.
_MOST_SEEN = 8192
_SEEN: dict[str, tuple[Mark, Seen]] = {}


def _mark(where: MachineDirectory) -> Mark:
    found: list[tuple[int, int, int] | bool | None] = [where.alive]
    run = where.file(STATUS).parent
    for name in _FILES:
        try:
            # Joining paths takes longer than asking the kernel.
            place = run if name in OF_THE_PROCESS else where.path
            status = os.stat(f"{place}/{name}", follow_symlinks=False)  # noqa: PTH116
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def look(path: Path) -> Seen | None:
    """Return the machine in a directory as a domain; None where there is none, or none any more."""
    where, key = MachineDirectory(path), os.fspath(path)
    mark = _mark(where)
    known = _SEEN.get(key)
    if known is not None and known[0] == mark:
        return known[1]
    if where.oddity():
        return None
    try:
        machine, facts, process = where.machine(), where.summary(), where.process()
        uuid = description.uuid_of(where, machine.id)
    except RingzeroError:
        return None
    status = Status(facts["status"])
    pid = process.pid if process is not None and status.alive else None
    found = Seen(Domain(where.name, uuid_bytes(uuid), status, pid), *state(facts))
    latest = max((file[2] for file in mark if isinstance(file, tuple)), default=0)
    if latest < time.time_ns() - _UNSETTLED and _mark(where) == mark:
        if len(_SEEN) >= _MOST_SEEN:
            _SEEN.clear()
        _SEEN[key] = mark, found
    return found


def domains(host: Host) -> list[Domain]:
    """Return all domains, by name."""
    try:
        entries = sorted(host.where.iterdir())
    except OSError:
        return []
    found = (look(entry) for entry in entries if NAME.fullmatch(entry.name))
    return [seen.domain for seen in found if seen is not None]


def by_name(host: Host, name: str) -> Domain:
    """Return the domain called `name`. Raises RefusedError."""
    return _named(host, name).domain


def _named(host: Host, name: str) -> Seen:
    found = look(host.where / name) if NAME.fullmatch(name) else None
    if found is None:
        raise _no_domain(f"no domain with matching name '{name}'")
    return found


def by_uuid(host: Host, uuid: bytes) -> Domain:
    """Return the domain with a UUID. Raises RefusedError."""
    for found in domains(host):
        if found.uuid == uuid:
            return found
    raise _no_domain(f"no domain with matching uuid '{uuid_text(uuid)}'")


def by_number(host: Host, number: int) -> Domain:
    """Return the domain with a number. Raises RefusedError."""
    for found in domains(host):
        if found.handle.id == number != NO_ID:
            return found
    raise _no_domain(f"no domain with matching id {number}")


def by_handle(host: Host, handle: DomainHandle) -> Domain:
    """Return the domain that a client means, by another name, too. Raises RefusedError."""
    return seen(host, handle).domain


def seen(host: Host, handle: DomainHandle) -> Seen:
    """Return the domain that a client means, with its state. Raises RefusedError."""
    try:
        found = _named(host, handle.name)
        if found.domain.uuid == handle.uuid:
            return found
    except RefusedError:
        pass
    try:
        return _named(host, by_uuid(host, handle.uuid).name)
    except RefusedError:
        text = f"no domain with matching uuid '{uuid_text(handle.uuid)}' ({handle.name})"
        raise _no_domain(text) from None


def state(facts: MachineSummary) -> tuple[DomainState, int]:
    """Return a domain's state and its reason (virDomainGetState)."""
    match Status(facts["status"]):
        case Status.PAUSED:
            return DomainState.PAUSED, PausedReason.USER
        case Status.STOPPING:
            return DomainState.SHUTDOWN, 1
        case Status.STARTING | Status.RUNNING:
            return DomainState.RUNNING, RunningReason.BOOTED
        case Status.DEFINED:
            return DomainState.SHUTOFF, ShutoffReason.UNKNOWN
        case _:
            ended = ExitRecord.from_dict(facts.get("exit") or {})
            return DomainState.SHUTOFF, shutoff_reason(ended)


def shutoff_reason(ended: ExitRecord | None) -> ShutoffReason:
    """Return why a domain does not run, from how its machine ended."""
    if ended is None:
        return ShutoffReason.UNKNOWN
    return {
        "poweroff": ShutoffReason.SHUTDOWN,
        "reboot": ShutoffReason.SHUTDOWN,
        "stopped": ShutoffReason.SHUTDOWN,
        "killed": ShutoffReason.DESTROYED,
    }.get(ended.reason, ShutoffReason.CRASHED)


def _no_domain(text: str) -> RefusedError:
    return RefusedError(ErrorCode.NO_DOMAIN, f"Domain not found: {text}")
