"""The XML of snapshots of a domain (libvirt's formatsnapshot)."""

from __future__ import annotations

from ringzero.doors.libvirt.xml.domain import DOMAIN, DomainXml
from ringzero.doors.libvirt.xml.shape import (
    NUMBER,
    PROSE,
    Extra,
    Many,
    One,
    Shape,
    Value,
)
from ringzero.records import record


@record
class SnapshotDiskXml:
    """What is kept of a disk: internal, external, manual or no."""

    name: str
    snapshot: str | None = None
    driver: str | None = None
    file: str | None = None
    extra: tuple[Extra, ...] = ()


SNAPSHOT_DISK = Shape(
    "disk",
    SnapshotDiskXml,
    {
        "name": Value("@name"),
        "snapshot": Value("@snapshot"),
        "driver": Value("driver/@type"),
        "file": Value("source/@file"),
    },
)


@record
class SnapshotXml:
    """A snapshot; `created` is in seconds since 1970, `memory` internal, external or no.

    `state` is what the machine did: running, paused, shutoff, disk-snapshot.
    """

    name: str | None = None
    state: str | None = None
    description: str | None = None
    parent: str | None = None
    created: int | None = None
    memory: str | None = None
    memory_file: str | None = None
    disks: tuple[SnapshotDiskXml, ...] = ()
    domain: DomainXml | None = None
    extra: tuple[Extra, ...] = ()


SNAPSHOT = Shape(
    "domainsnapshot",
    SnapshotXml,
    {
        "name": Value("name"),
        "state": Value("state"),
        "description": Value("description", PROSE),
        "parent": Value("parent/name"),
        "created": Value("creationTime", NUMBER),
        "memory": Value("memory/@snapshot"),
        "memory_file": Value("memory/@file"),
        "disks": Many("disks/disk", SNAPSHOT_DISK),
        "domain": One("domain", DOMAIN),
    },
)
