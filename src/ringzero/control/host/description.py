"""What may be said of a machine at any time: its metadata, and its description from the next start.

Both stand in files of their own, beside machine.json, which is the running process's
(`ringzero.control.host.notes`). docs/machines.md explains the files.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ringzero.api.values import MetadataSummary
from ringzero.config.devices.disk import DiskConfig
from ringzero.config.machine import MachineConfig
from ringzero.config.tree import config_from_tree, config_to_tree
from ringzero.control.host.directory import MachineDirectory
from ringzero.control.host.notes import METADATA, NEXT, NOTED, MetadataRecord, changing
from ringzero.control.host.notes import notes as notes_of
from ringzero.control.host.records import read_json, save, write_json
from ringzero.errors import ConflictError, InvalidValueError
from ringzero.host.files import sync_file
from ringzero.records import replace

# Of the UUIDs that are made from machines' identifiers (RFC 9562 section 5.5).
_NAMESPACE = uuid.UUID("c2a3f1de-5f0c-4f0b-9d0e-7a1f5b1c9e52")
# What a machine's file may hold, in characters of its elements and texts together.
_MOST = 256 << 10


def uuid_of(where: MachineDirectory, identifier: str) -> str:
    """Return the machine's UUID: the one that it was given, or one made from its identifier."""
    return _uuid(notes_of(where.path), identifier)


def metadata(where: MachineDirectory) -> MetadataSummary:
    """Return a machine's metadata. Raises NotFoundError, ControlError."""
    machine, found = where.machine(), notes_of(where.path)
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
    given = {"title": title, "description": description, "autostart": autostart}
    with changing(where.path):
        new = _changed(notes_of(where.path), {**given, "metadata": metadata, "uuid": uuid})
        save(new, where.path / METADATA)


def _changed(old: MetadataRecord, given: Mapping[str, Any]) -> MetadataRecord:
    """Return notes with what is given, which is as `describe` takes it."""
    changes = {name: value for name, value in given.items() if value is not None}
    elements = {**old.elements, **changes.pop("metadata", {})}
    elements = {key: text for key, text in elements.items() if text is not None}
    if "uuid" in changes:
        changes["uuid"] = check_uuid(changes["uuid"])
    new = replace(old, **changes, changes=old.changes + 1)
    return replace(new, elements=check_metadata(elements, new.title, new.description))


def redefine(
    where: MachineDirectory,
    config: MachineConfig,
    *,
    image: str = "",
    command: tuple[str, ...] = (),
    timeout: float | None = None,
    serial: str | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Describe a machine anew: at once where it does not run, else from its next start on.

    `notes` change with it, as `describe` takes them: whoever looks sees both changes or neither.
    Raises ConflictError, InvalidValueError, NotFoundError, HostError.
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
    with changing(where.path):
        noted = _changed(notes_of(where.path), notes or {})
        write_json(where.path / NEXT, given | {NOTED: noted.to_dict()})
        save(noted, where.path / METADATA)
        # One that ends in between, or starts, finds it there.
        with contextlib.suppress(ConflictError):
            where.redescribe(lambda record: record)


def move_disks(where: MachineDirectory, disks: Sequence[DiskConfig]) -> None:
    """Write down durably that a machine that runs has these images as its disks.

    A description from the next start on that names one of those that they were names the new
    one, too. Raises ControlError, ConfigError, HostError.
    """
    before = where.machine().machine_config().disks
    moved = {old.path: new for old, new in zip(before, disks, strict=True) if old != new}

    def move(config: MachineConfig) -> dict[str, Any]:
        return config_to_tree(
            config.map_devices(
                lambda _, device: (
                    moved.get(device.path, device) if isinstance(device, DiskConfig) else device
                )
            )
        )

    with changing(where.path):
        given = read_json(where.path / NEXT)
        if given is not None:
            coming = config_from_tree(given["config"])
            write_json(where.path / NEXT, given | {"config": move(coming)})
            sync_file(where.path / NEXT)
    where.amend(
        lambda record: replace(record, config=move(record.machine_config()) | {"name": record.name})
    )
    sync_file(where.path)


def _uuid(found: MetadataRecord, identifier: str) -> str:
    return found.uuid or str(uuid.uuid5(_NAMESPACE, identifier))
