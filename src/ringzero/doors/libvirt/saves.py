"""Domains written down and ended: managed saves, kept until the next start, and files.

What is kept is a snapshot; the machine's notes say which. It is of use only as long as the machine
has not run since: the notes have the process that was saved, and `ringzero start` begins another.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping

from ringzero.api.values import MachineSummary, SnapshotFacts, SnapshotSummary, Status
from ringzero.control.host.client import Host, RemoteMachine
from ringzero.control.host.directory import MachineDirectory
from ringzero.doors.libvirt import inventory
from ringzero.doors.libvirt.constants import DomainState, ShutoffReason
from ringzero.doors.libvirt.context import RefusedError
from ringzero.doors.libvirt.faults import ErrorCode
from ringzero.doors.libvirt.inventory import Domain
from ringzero.doors.libvirt.transient import TRANSIENT
from ringzero.errors import RingzeroError
from ringzero.records import record

# Among a machine's notes: what was kept.
SAVED = "libvirt-saved"
# What snapshots are called that are no one's but the domain's; the rest is random.
PREFIX = "managed-save."
# How a machine has ended that was saved, or could not go on from there.
_ENDS = ("killed", "not-built", "died")


@record
class Saved:
    """What was kept: a snapshot's identifier, the process that was saved, whether it is paused."""

    id: str
    process: str
    paused: bool


def noted(elements: Mapping[str, str]) -> Saved | None:
    """Return what a machine's notes say."""
    try:
        found = json.loads(elements.get(SAVED, ""))
        return Saved(str(found["id"]), str(found["process"]), bool(found["paused"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def find(host: Host, domain: Domain) -> tuple[Saved, SnapshotSummary] | None:
    """Return what is kept of a domain that does not run, and has not run since."""
    machine = host.machine(domain.name)
    found = noted(machine.metadata()["elements"])
    if found is None or not _is_end_of(machine, found):
        return None
    for stored in host.snapshots():
        if stored["id"] == found.id:
            return found, stored
    return None


def state(host: Host, name: str, facts: MachineSummary) -> tuple[DomainState, int]:
    """Return a domain's state and its reason, which may be that it was saved."""
    found, reason = inventory.state(facts)
    if found is DomainState.SHUTOFF and is_end(host, name):
        reason = ShutoffReason.SAVED
    return found, reason


def is_end(host: Host, name: str) -> bool:
    """Return whether the last end of a machine was that of a save."""
    try:
        machine = host.machine(name)
        found = noted(machine.metadata()["elements"])
        return found is not None and _is_end_of(machine, found)
    except RingzeroError:
        return False


# ---- managed saves --------------------------------------------------------------


def save(host: Host, domain: Domain, paused: bool) -> None:
    """Keep what a domain is, and end it; `paused` says what it is to be from its next start on."""
    with _written(host, domain) as (_, identifier):
        # What is of no use since `ringzero start` goes.
        discard(host, domain)
        _keep(host, domain, identifier, paused)
        host.machine(domain.name).kill()


def _keep(host: Host, domain: Domain, identifier: str, paused: bool) -> None:
    machine = host.machine(domain.name)
    said = {"id": identifier, "process": _process(machine), "paused": paused}
    machine.describe(metadata={SAVED: json.dumps(said)})


def discard(host: Host, domain: Domain) -> None:
    """Remove what is kept of a domain, also where that is of no use any more."""
    machine = host.machine(domain.name)
    found = noted(machine.metadata()["elements"])
    if found is None:
        return
    for stored in host.snapshots():
        if stored["id"] == found.id:
            host.remove_snapshot(stored["name"])
    machine.describe(metadata={SAVED: None})


def resume(host: Host, domain: Domain, paused: bool | None = None) -> None:
    """Start a domain from what is kept, which goes then; `paused` None: as it was saved.

    Raises RingzeroError where it cannot; then it is kept.
    """
    kept = find(host, domain)
    if kept is None:
        raise _invalid("the domain has no managed save image any more")
    saved, stored = kept
    machine = host.machine(domain.name)
    try:
        machine.revert(stored["directory"])
    except BaseException:
        # It did not run: the process that failed is not one that has left it behind.
        with contextlib.suppress(RingzeroError):
            if not machine.directory.alive:
                _keep(host, domain, saved.id, saved.paused)
        raise
    if saved.paused if paused is None else paused:
        machine.pause()
    # It runs: what cannot be removed now is of no use any more, and goes with the next.
    with contextlib.suppress(RingzeroError):
        discard(host, domain)


# ---- files ----------------------------------------------------------------------


def save_file(host: Host, domain: Domain, path: str) -> None:
    """Write what a domain is to a file, and end it."""
    with _written(host, domain) as (name, _):
        host.export_snapshot(name, path)
        host.machine(domain.name).kill()
    host.remove_snapshot(name)


def restore_file(host: Host, path: str, paused: bool) -> None:
    """Take the domain that a file is of back to it. Raises RingzeroError where it cannot."""
    name = _free_name()
    read = host.import_snapshot(path, name)
    where: MachineDirectory | None = None
    try:
        domain = _owner(host, read)
        machine = host.machine(domain.name)
        where = machine.directory
        machine.revert(read["directory"])
        if paused:
            machine.pause()
    finally:
        # Disks that were taken back in part only need it until that is completed.
        if where is None or where.machine().revert != read["directory"]:
            host.remove_snapshot(name)


def _owner(host: Host, read: SnapshotFacts) -> Domain:
    """Return the domain that a file is of. Raises RefusedError where it cannot be restored."""
    name = read["machine"] or ""
    try:
        found = inventory.by_name(host, name)
    except RefusedError:
        text = f"the file is of domain '{name}', which is not defined: define it first"
        raise _invalid(text) from None
    if found.active:
        raise _invalid(f"domain '{found.name}' is already active")
    return found


# ---- both -----------------------------------------------------------------------


@contextlib.contextmanager
def _written(host: Host, domain: Domain) -> Iterator[tuple[str, str]]:
    """Yield name and identifier of a snapshot of a domain, which stands still from then on.

    After an error in the block the domain goes on, and the snapshot is gone.
    """
    machine = host.machine(domain.name)
    if TRANSIENT in machine.metadata()["elements"]:
        raise _invalid("a transient domain is not saved, for it could not be restored: define it")
    if domain.status is not Status.PAUSED:
        machine.pause()
    name = _free_name()
    try:
        identifier = machine.snapshot(name, store())
        try:
            yield name, identifier
        except BaseException:
            host.remove_snapshot(name)
            raise
    except BaseException:
        if domain.status is not Status.PAUSED:
            # Where it has ended meanwhile, that is what is to be told.
            with contextlib.suppress(RingzeroError):
                machine.resume()
        raise


def store() -> str:
    """Return the directory of all snapshots."""
    from ringzero.vm.saved.store import Store

    return str(Store().root)


def _is_end_of(machine: RemoteMachine, saved: Saved) -> bool:
    """Return whether a machine ended as a save ends it, and has not run since."""
    ended = machine.directory.exit()
    # One that was saved, and then went on because nobody was left to end it, ends otherwise.
    return ended is not None and ended.reason in _ENDS and saved.process == _process(machine)


def _invalid(text: str) -> RefusedError:
    return RefusedError(ErrorCode.OPERATION_INVALID, f"Requested operation is not valid: {text}")


def _free_name() -> str:
    return PREFIX + os.urandom(8).hex()


def _process(machine: RemoteMachine) -> str:
    """Return who runs a machine, or ran it last, beyond the number; "" for nobody."""
    found = machine.directory.process()
    return f"{found.pid}:{found.started}:{found.boot}" if found is not None else ""
