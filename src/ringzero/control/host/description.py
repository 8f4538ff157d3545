"""What may be said of a machine at any time: its metadata, and its description from the next start.

Both stand in files of their own, beside machine.json, which is the running process's: who changes
them asks no process, and waits for none. docs/machines.md explains the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ringzero.api.values import MetadataSummary, Value
from ringzero.config.machine import MachineConfig
from ringzero.config.tree import config_to_tree
from ringzero.control.host.directory import METADATA, NEXT, MachineDirectory
from ringzero.control.host.records import load, save, write_json
from ringzero.errors import ConflictError, InvalidValueError
from ringzero.host.files import host_error
from ringzero.records import field, record, replace

# Of the UUIDs that are made from machines' identifiers (RFC 9562 section 5.5).
_NAMESPACE = uuid.UUID("c2a3f1de-5f0c-4f0b-9d0e-7a1f5b1c9e52")
# What a machine's file may hold, in characters of its elements and texts together: 1 MiB of file.
_MOST = 256 << 10


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
        if not isinstance(self.elements, dict):
            raise TypeError("no elements")


def uuid_of(where: MachineDirectory, identifier: str) -> str:
    """Return the machine's UUID: the one that it was given, or one made from its identifier."""
    return _uuid(_load(where), identifier)


def metadata(where: MachineDirectory) -> MetadataSummary:
    """Return a machine's metadata. Raises NotFoundError, ControlError."""
    machine, found = where.machine(), _load(where)
    return {
        "uuid": _uuid(found, machine.id),
        "title": found.title,
        "description": found.description,
        "autostart": found.autostart,
        "elements": dict(found.elements),
    }


def check_metadata(elements: Mapping[str, Any], *texts: str) -> dict[str, str]:
    """Return elements of metadata that can be kept; raises InvalidValueError."""
    wrong = [key for key, text in elements.items() if not key or not isinstance(text, str)]
    if wrong:
        raise InvalidValueError(f"the metadata {wrong[0][:64]!r} is no text")
    if sum(len(key) + len(text) for key, text in elements.items()) + sum(map(len, texts)) > _MOST:
        raise InvalidValueError(f"metadata of more than {_MOST} characters")
    return dict(elements)


def check_uuid(text: str) -> str:
    """Return a UUID as it is written (RFC 9562 section 4); raises InvalidValueError."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidValueError(
            f"{text[:64]!r} is no UUID", hint="32 hexadecimal digits: 8-4-4-4-12"
        ) from None


def describe(
    where: MachineDirectory,
    *,
    title: str | None = None,
    description: str | None = None,
    autostart: bool | None = None,
    metadata: Mapping[str, Any] | None = None,
    uuid: str | None = None,
) -> None:
    """Change what is given, and leave the rest; an element that is None goes.

    Raises InvalidValueError, NotFoundError, HostError.
    """
    where.machine()
    with changing(where):
        old = _load(where)
        elements: dict[str, Any] = {**old.elements, **(metadata or {})}
        elements = {key: text for key, text in elements.items() if text is not None}
        new = replace(
            old,
            uuid=old.uuid if uuid is None else check_uuid(uuid),
            title=old.title if title is None else title,
            description=old.description if description is None else description,
            autostart=old.autostart if autostart is None else autostart,
            changes=old.changes + 1,
        )
        kept = check_metadata(elements, new.title, new.description)
        save(replace(new, elements=kept), where.path / METADATA)


def redefine(
    where: MachineDirectory,
    config: MachineConfig,
    *,
    image: str = "",
    command: tuple[str, ...] = (),
    timeout: float | None = None,
    serial: str | None = None,
) -> None:
    """Describe a machine anew: at once where it does not run, else from its next start on.

    Raises ConflictError, NotFoundError, HostError.
    """
    old = where.machine()
    if old.deployment is not None:
        raise ConflictError(
            f"machine {where.name!r} is part of a deployment",
            hint="change its file, and `ringzero deploy`",
        )
    given = {
        "config": config_to_tree(config) | {"name": where.name},
        "image": image,
        "command": list(command),
        "timeout": timeout,
        "serial": None if serial is None else str(Path(serial).absolute()),
    }
    with changing(where):
        write_json(where.path / NEXT, given)
        # One that ends in between, or starts, finds it there.
        with contextlib.suppress(ConflictError):
            where.redescribe(lambda record: record)
    describe(where)


def _uuid(found: MetadataRecord, identifier: str) -> str:
    return found.uuid or str(uuid.uuid5(_NAMESPACE, identifier))


def _load(where: MachineDirectory) -> MetadataRecord:
    return load(MetadataRecord, where.path / METADATA) or MetadataRecord()


@contextlib.contextmanager
def changing(where: MachineDirectory) -> Iterator[None]:
    """Be the only one who changes these files of a machine."""
    try:
        descriptor = os.open(where.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as fault:
        raise host_error(fault, "open", where.path) from fault
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
