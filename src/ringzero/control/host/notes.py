"""The notes of a machine, as its directory has them: metadata.json, and what came with next.json.

Who changes them asks no process, and waits for none. A change of the description and the notes is
one rename: the notes then stand in next.json first, and count from there on until they are settled.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ringzero.api.values import Value
from ringzero.control.host.records import load, read_json, save
from ringzero.host.files import host_error
from ringzero.records import field, record

# What the machine is from its next start on, where that is something else; and what is noted of it.
NEXT, METADATA = "next.json", "metadata.json"
# In next.json: the notes that came with the description.
NOTED = "metadata"
# In the context of a fault: the machine was not taken back to a snapshot, in no part.
UNCHANGED = "unchanged"


@record
class MetadataRecord(Value):
    """metadata.json: what people and other programs note of a machine; it means nothing to it.

    `elements` are texts by key, each one's own: a door's XML, a tool's mark. `changes` counts.
    """

    uuid: str = ""
    title: str = ""
    description: str = ""
    autostart: bool = False
    elements: dict[str, str] = field(default_factory=dict)
    changes: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.elements, dict) or not isinstance(self.changes, int):
            raise TypeError("no notes")


def notes(path: Path) -> MetadataRecord:
    """Return what is noted in a machine's directory."""
    return _unsettled(path) or _settled(path)


def settle(path: Path) -> None:
    """Put what is noted in next.json alone, since who wrote it was killed, where notes are."""
    if _unsettled(path) is None:
        return
    with changing(path):
        noted = _unsettled(path)
        if noted is not None:
            save(noted, path / METADATA)


@contextlib.contextmanager
def changing(path: Path) -> Iterator[None]:
    """Be the only one who changes these files of a machine. Raises HostError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as fault:
        raise host_error(fault, "open", path) from fault
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _settled(path: Path) -> MetadataRecord:
    return load(MetadataRecord, path / METADATA) or MetadataRecord()


def _unsettled(path: Path) -> MetadataRecord | None:
    """Return what is noted in next.json, where that is newer."""
    given = (read_json(path / NEXT) or {}).get(NOTED)
    noted = MetadataRecord.from_dict(given) if isinstance(given, dict) else None
    return noted if noted is not None and noted.changes > _settled(path).changes else None
