"""Machines as domains: found by name, UUID or number, with what is asked of them most.

A domain's number is that of its machine's process: it is the same for whoever asks, and no daemon
has to remember it.
"""

from __future__ import annotations

from ringzero.api.values import ExitRecord, MachineSummary, Status
from ringzero.control.host import description, directory
from ringzero.control.host.client import Host
from ringzero.control.host.directory import MachineDirectory
from ringzero.doors.libvirt.constants import (
    DomainState,
    PausedReason,
    RunningReason,
    ShutoffReason,
)
from ringzero.doors.libvirt.context import RefusedError
from ringzero.doors.libvirt.faults import ErrorCode
from ringzero.doors.libvirt.values import DomainHandle, uuid_bytes, uuid_text
from ringzero.errors import InvalidValueError, NotFoundError, RingzeroError
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


def of(where: MachineDirectory) -> Domain | None:
    """Return a machine as a domain; None where it has just gone."""
    try:
        machine = where.machine()
        status, process = where.status(), where.process()
        uuid = description.uuid_of(where, machine.id)
    except RingzeroError:
        return None
    pid = process.pid if process is not None and status.alive else None
    return Domain(where.name, uuid_bytes(uuid), status, pid)


def domains(host: Host) -> list[Domain]:
    """Return all domains, by name."""
    return [found for where in directory.machines(host.where) if (found := of(where))]


def by_name(host: Host, name: str) -> Domain:
    """Return the domain called `name`. Raises RefusedError."""
    try:
        found = of(directory.find(name, host.where))
    except (NotFoundError, InvalidValueError):
        found = None
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
    try:
        found = by_name(host, handle.name)
    except RefusedError:
        found = None
    if found is not None and found.uuid == handle.uuid:
        return found
    try:
        return by_uuid(host, handle.uuid)
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
