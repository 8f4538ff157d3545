"""A domain's snapshots: those of its machine, with what clients said of them.

Snapshots lie in one store for all machines. A domain's are those that its machine's notes name,
and those that were saved of a machine of its name since it was made, as `ringzero snapshot save`
does. What libvirt knows of a snapshot besides, a name of the client's, the domain's state, stands
in the machine's notes: it follows a machine that is renamed, and goes with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ringzero.api.values import SnapshotSummary
from ringzero.control.host.client import Host
from ringzero.doors.libvirt import definitions, saves
from ringzero.doors.libvirt.context import RefusedError
from ringzero.doors.libvirt.faults import ErrorCode, ErrorDomain
from ringzero.doors.libvirt.inventory import Domain
from ringzero.doors.libvirt.xml.snapshot import SNAPSHOT, SnapshotDiskXml, SnapshotXml
from ringzero.errors import InvalidValueError
from ringzero.records import record, replace

# Among a machine's notes: what a client said of a snapshot, by its identifier; and which was
# made, or gone back to, last.
NOTE, CURRENT = "libvirt-snapshot:", "libvirt-current-snapshot"
# What a domain did when it was saved: as libvirt calls it.
RUNNING, PAUSED, SHUTOFF, DISKS = "running", "paused", "shutoff", "disk-snapshot"
_STATES = frozenset((RUNNING, PAUSED, SHUTOFF, DISKS))
# What a snapshot in the store may be called, without what is taken there.
_FOREIGN, _LONGEST = re.compile(r"[^A-Za-z0-9_.-]+"), 40
_TAKEN = frozenset(("blobs", "lock"))


def is_name(text: str) -> bool:
    """Return whether a client may call a snapshot so: as libvirt has it, and in one line."""
    return bool(text) and text.isprintable() and "/" not in text and not text.startswith(".")


@record
class Note:
    """What stands in a machine's notes of a snapshot; `parent` is an identifier, or ""."""

    name: str
    state: str
    parent: str = ""
    sent: str = ""

    def __post_init__(self) -> None:
        texts = (self.name, self.state, self.parent, self.sent)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("no note of a snapshot")
        if not is_name(self.name) or self.state not in _STATES:
            raise ValueError("no note of a snapshot")

    def text(self) -> str:
        """Return it as it is kept."""
        return json.dumps(
            {"name": self.name, "state": self.state, "parent": self.parent, "sent": self.sent}
        )


@record
class DomainSnapshot:
    """A snapshot as clients see it; `parent` is the name of another of the same domain's."""

    name: str
    state: str
    parent: str | None
    stored: SnapshotSummary
    note: Note | None

    @property
    def id(self) -> str:
        """Its identifier."""
        return self.stored["id"]

    @property
    def memory(self) -> bool:
        """Whether it has the guest's memory."""
        return self.stored["memory"] is not None


@record
class DomainSnapshots:
    """All of a domain's, parents first, and the name of the current one."""

    domain: Domain
    all: tuple[DomainSnapshot, ...]
    current: str | None

    def find(self, name: str) -> DomainSnapshot:
        """Return the snapshot called `name`. Raises RefusedError."""
        for found in self.all:
            if found.name == name:
                return found
        raise absent(f"no domain snapshot with matching name '{name}'")

    def children(self, name: str) -> list[DomainSnapshot]:
        """Return those whose parent is the one called `name`."""
        return [found for found in self.all if found.parent == name]

    def descendants(self, name: str) -> list[DomainSnapshot]:
        """Return those below the one called `name`, parents first."""
        below, found = {name}, []
        for each in self.all:
            if each.parent in below:
                below.add(each.name)
                found.append(each)
        return found


def absent(text: str) -> RefusedError:
    """Return the error for a snapshot that is not there."""
    text = f"Domain snapshot not found: {text}"
    return RefusedError(ErrorCode.NO_DOMAIN_SNAPSHOT, text, ErrorDomain.DOMAIN_SNAPSHOT)


def of(host: Host, domain: Domain) -> DomainSnapshots:
    """Return a domain's snapshots. Raises RingzeroError."""
    machine = host.machine(domain.name)
    elements = machine.metadata()["elements"]
    made, notes = machine.directory.machine().created, _notes(elements)
    mine = [
        stored
        for stored in host.snapshots()
        if stored["id"] in notes
        or (
            stored["machine"] == domain.name
            and stored["taken"] >= made
            and not stored["name"].startswith(saves.PREFIX)
        )
    ]
    names = {s["id"]: n.name if (n := notes.get(s["id"])) else s["name"] for s in mine}
    # Oldest first: a parent is one of those before, whatever notes and manifests say.
    found: dict[str, DomainSnapshot] = {}
    for stored in mine:
        note = notes.get(stored["id"])
        above = found.get(note.parent) if note is not None else None
        if above is None:
            above = next((s for s in found.values() if s.stored["name"] == stored["parent"]), None)
        parent = above.name if above is not None else None
        state = note.state if note is not None else RUNNING if stored["memory"] else SHUTOFF
        name = names[stored["id"]]
        found[stored["id"]] = DomainSnapshot(name, state, parent, stored, note)
    return DomainSnapshots(domain, tuple(found.values()), _current(elements, mine, names))


def _notes(elements: Mapping[str, str]) -> dict[str, Note]:
    found = {}
    for key, text in elements.items():
        if key.startswith(NOTE):
            try:
                note = Note(**json.loads(text))
            except (ValueError, TypeError, RecursionError):
                # Another program's, or another version's: the snapshot is told without it.
                continue
            found[key.removeprefix(NOTE)] = note
    return found


def _current(
    elements: Mapping[str, str], mine: list[SnapshotSummary], names: Mapping[str, str]
) -> str | None:
    """Return the name of the one that was made or gone back to last."""
    try:
        said = json.loads(elements.get(CURRENT, ""))
        which, when = str(said["id"]), float(said["time"])
    except (ValueError, TypeError, KeyError, RecursionError):
        which, when = "", 0.0
    # One that was saved since by somebody else.
    if mine and mine[-1]["taken"] > when:
        return names[mine[-1]["id"]]
    return names.get(which)


# ---- what is said of them -------------------------------------------------------


def note_made(host: Host, domain: Domain, identifier: str, note: Note) -> None:
    """Note what a client said of a snapshot that was just made; it is the current one."""
    elements: dict[str, Any] = {NOTE + identifier: note.text(), CURRENT: _now(identifier)}
    host.machine(domain.name).describe(metadata=elements)


def note_current(host: Host, domain: Domain, identifier: str) -> None:
    """Note that a domain has gone back to a snapshot."""
    host.machine(domain.name).describe(metadata={CURRENT: _now(identifier)})


def remove(host: Host, snapshots: DomainSnapshots, gone: Iterable[DomainSnapshot]) -> None:
    """Remove snapshots; children of theirs become those of the nearest that is left."""
    removed = {found.name: found for found in gone}
    ids = {found.name: found.id for found in snapshots.all}

    def left(name: str | None) -> str | None:
        while name in removed:
            name = removed[name].parent
        return name

    elements: dict[str, Any] = {}
    for found in snapshots.all:
        if found.name in removed:
            elements[NOTE + found.id] = None
        elif found.note is not None and found.parent in removed:
            parent = ids.get(left(found.parent) or "", "")
            elements[NOTE + found.id] = replace(found.note, parent=parent).text()
    if snapshots.current in removed:
        elements[CURRENT] = _now(ids.get(left(snapshots.current) or "", ""))
    # Children first: what is cut short leaves a tree.
    for found in reversed(list(removed.values())):
        host.remove_snapshot(found.stored["name"])
    host.machine(snapshots.domain.name).describe(metadata=elements)


def forget(host: Host, domain: Domain) -> None:
    """Take what clients said of a domain's snapshots out of its notes."""
    elements = host.machine(domain.name).metadata()["elements"]
    gone: dict[str, Any] = {key: None for key in elements if key.startswith(NOTE) or key == CURRENT}
    host.machine(domain.name).describe(metadata=gone)


def free_name(host: Host, domain: Domain, wanted: str) -> str:
    """Return a name that no snapshot in the store has, near the one that a client wants."""
    taken = _TAKEN | {found["name"] for found in host.snapshots()}
    plain = _FOREIGN.sub("-", wanted).lstrip("._-")[:_LONGEST] or "snapshot"
    for name in (plain, f"{domain.name[: 62 - len(plain)]}.{plain}"):
        if name not in taken and name == _FOREIGN.sub("-", name):
            return name
    return f"{plain}.{os.urandom(8).hex()}"


def _now(identifier: str) -> str:
    return json.dumps({"id": identifier, "time": time.time()})


# ---- as XML ---------------------------------------------------------------------


def xml(host: Host, domain: Domain, found: DomainSnapshot) -> SnapshotXml:
    """Return a snapshot as a document, with the domain as it was. Raises RingzeroError."""
    from ringzero.vm.saved.snapshot import Snapshot

    sent = SnapshotXml()
    if found.note is not None and found.note.sent:
        with contextlib.suppress(InvalidValueError, ValueError):
            sent = SNAPSHOT.parse(found.note.sent)
    config = Snapshot.open(Path(found.stored["directory"])).manifest.config
    was = definitions.xml_as(host, domain, config)
    disks = tuple(
        SnapshotDiskXml(disk.target, "no" if disk.read_only else "internal")
        for disk in was.disks
        if disk.target
    )
    return replace(
        sent,
        name=found.name,
        state=found.state,
        parent=found.parent,
        created=int(found.stored["taken"]),
        memory="internal" if found.memory else "no",
        memory_file=None,
        disks=disks,
        domain=was,
    )


def check_disks(host: Host, domain: Domain, found: DomainSnapshot) -> None:
    """Raise RingzeroError where a domain's disks cannot become those of a snapshot.

    Before it is ended: which disks there are is compared, and what the snapshot has of them.
    """
    from ringzero.vm.saved.snapshot import Snapshot

    snapshot = Snapshot.open(Path(found.stored["directory"]))
    for content in snapshot.disks():
        content.close()
    machine = host.machine(domain.name).directory.machine()
    mine = [str(disk.path.absolute()) for disk in machine.machine_config().disks]
    copy = bool(machine.snapshot or machine.parent)
    if copy or mine != [part.path for part in snapshot.manifest.disks]:
        text = f"the disks of domain '{domain.name}' are not those of snapshot '{found.name}'"
        raise RefusedError(ErrorCode.CONFIG_UNSUPPORTED, text, ErrorDomain.DOMAIN_SNAPSHOT)


def sent(document: SnapshotXml) -> str:
    """Return what is kept of a client's document: all that is its own."""
    kept = SnapshotXml(description=document.description, extra=document.extra)
    return SNAPSHOT.render(kept) if kept != SnapshotXml() else ""
