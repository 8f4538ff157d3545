"""What a machine's directory says in its JSON files, as frozen dataclasses.

A file may be missing, cut short or from another version: `read` gives None
for everything that is not a whole record, and never raises for content.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ringzero.config.machine import MachineConfig
from ringzero.config.tree import config_from_tree
from ringzero.errors import GuestError, RingzeroError, StateError
from ringzero.host.files import host_error
from ringzero.host.process import ProcessIdentity
from ringzero.records import field, field_names, record

# Of machine.json: a reader refuses a higher one.
FORMAT = 2
# A record is a few hundred bytes; a command line may add 2 KiB. More is not ours.
_MAX_FILE = 1 << 20


class Status(enum.Enum):
    """What a machine is doing, as `ringzero ps` shows it."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    ENDED = "ended"  # its process wrote down why
    DEAD = "dead"  # its process went away without a word

    @property
    def alive(self) -> bool:
        """Whether a process stands behind it."""
        return self not in (Status.ENDED, Status.DEAD)


class Record:
    """A frozen dataclass in one JSON file."""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the record in the file, or None where there is no whole one."""
        data = read_json(path)
        return None if data is None else cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self | None:
        """Return the record that plain data describe, or None."""
        known = set(field_names(cls))
        try:
            return cls(**{key: value for key, value in data.items() if key in known})
        except (TypeError, ValueError, KeyError, AttributeError, RingzeroError):
            return None

    def write(self, path: Path) -> None:
        """Put the record into the file, at once and whole. Raises HostError."""
        write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return {name: getattr(self, name) for name in field_names(type(self))}


@record
class MachineRecord(Record):
    """machine.json: what was asked for.

    `created` is in seconds since 1970. `command` runs in the guest and its end
    is the machine's; `timeout` (seconds) and `serial` (a file) are those of
    `ringzero run`. `foreground` says that a terminal's command holds the machine,
    `remove` that the directory goes away at its end. `snapshot` is the directory of the
    snapshot that the machine goes on from, or ""; `revert` that of the one to which it is being
    taken back: while it stands there, the machine's disks may be in between.
    """

    name: str
    id: str
    created: float
    config: dict[str, Any]
    image: str = ""
    command: tuple[str, ...] = ()
    timeout: float | None = None
    serial: str | None = None
    foreground: bool = False
    remove: bool = False
    parent: str = ""
    snapshot: str = ""
    revert: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format > FORMAT:
            raise StateError(f"machine {self.name!r} was made by a newer ringzero", expected=FORMAT)
        if not isinstance(self.config, dict):
            raise TypeError("no config")
        object.__setattr__(self, "command", tuple(map(str, self.command)))

    def machine_config(self) -> MachineConfig:
        """Return the machine's description. Raises ConfigError."""
        return config_from_tree(self.config)


@record
class ProcessRecord(Record):
    """process.json: who runs the machine.

    The control group and how often the kernel had killed in it for want of
    memory help to say later why the process died.
    """

    pid: int
    started: int
    boot: str
    cgroup: str = ""
    oom_kills: int | None = None

    @property
    def identity(self) -> ProcessIdentity:
        """The process beyond its number."""
        return ProcessIdentity(int(self.pid), int(self.started), str(self.boot))


@record
class StatusRecord(Record):
    """status.json: what the living machine does; `since` is in seconds since 1970."""

    status: str
    since: float
    engine: str = ""

    def __post_init__(self) -> None:
        Status(self.status)


@record
class ExitRecord(Record):
    """exit.json: how it ended. `reason` is a word for programs, `detail` for people.

    `exit_code` is what `ringzero run` would have ended with.
    """

    reason: str
    detail: str
    exit_code: int
    time: float
    stats: dict[str, Any] = field(default_factory=dict)

    def error(self) -> GuestError | None:
        """Return the error that a bad end is, or None for a good one."""
        if self.exit_code != GuestError.exit_code:
            return None
        return GuestError(f"the guest ended ({self.reason}): {self.detail or 'no more is known'}")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None where there is no whole one."""
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(_MAX_FILE))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a file by one with `data`: readers see the old one or the new one. HostError.

    Not flushed to the disk: it is about processes, which a power cut ends too.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        temporary.touch(0o600)
        temporary.write_text(json.dumps(data, default=str) + "\n")
        temporary.replace(path)
    except OSError as fault:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise host_error(fault, "write", path) from fault
