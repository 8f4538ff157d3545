"""What a machine's directory says in its JSON files, as frozen dataclasses.

A file may be missing, cut short or from another version: `load` gives None
for everything that is not a whole record, and never raises for content.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ringzero.api.values import HealthCheck, HealthSummary, Probed, Status, Value
from ringzero.config.machine import MachineConfig
from ringzero.config.tree import config_from_tree
from ringzero.errors import ConfigError, StateError
from ringzero.host.files import host_error, open_regular
from ringzero.host.process import ProcessIdentity
from ringzero.records import field, record, replace
from ringzero.settings import Jail

AnyValue = TypeVar("AnyValue", bound=Value)

# Of machine.json: a reader refuses a higher one.
FORMAT = 2
# A record is a few hundred bytes; notes have up to 256 Ki characters, of up to 12 bytes each as
# JSON has them. More is not ours.
_MAX_FILE = 4 << 20
# What a health check says; and how many of its last runs are kept, as Docker does.
STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"
_KEPT_PROBES = 5


@record
class MachineRecord(Value):
    """machine.json: what was asked for.

    `created` is in seconds since 1970. `command` runs in the guest and its end
    is the machine's; `timeout` (seconds) and `serial` (a file) are those of
    `ringzero run`. `foreground` says that a terminal's command holds the machine,
    `remove` that the directory goes away at its end. `snapshot` is the directory of the
    snapshot that the machine goes on from, or ""; `revert` that of the one to which it is being
    taken back: while it stands there, the machine's disks may be in between. `boot` has its guest
    boot, and not go on from a template. `health` is a HealthCheck, or None. `secrets` are
    variables of the command (`ringzero.control.host.secrets`), each with where its value is read
    when that starts. `deployment` says what the machine is part of, where it is part of a
    deployment (`ringzero.deployment`). `jail` is the value of a `ringzero.settings.Jail`.
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
    boot: bool = False
    health: dict[str, Any] | None = None
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    deployment: dict[str, Any] | None = None
    jail: str = Jail.AUTO.value
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format > FORMAT:
            raise StateError(f"machine {self.name!r} was made by a newer ringzero", expected=FORMAT)
        if not isinstance(self.config, dict):
            raise TypeError("no config")
        Jail(self.jail)
        object.__setattr__(self, "command", tuple(map(str, self.command)))

    @property
    def health_check(self) -> HealthCheck | None:
        """What tells whether what runs in it is well."""
        return HealthCheck.from_dict(self.health) if isinstance(self.health, dict) else None

    def machine_config(self) -> MachineConfig:
        """Return the machine's description. Raises ConfigError."""
        return config_from_tree(self.config)


# What of a machine's record a new description has; the rest is the machine's life.
_DESCRIBED = ("config", "image", "command", "timeout", "serial")


def described_anew(old: MachineRecord, given: Mapping[str, Any]) -> MachineRecord:
    """Return a record with the description in next.json. Raises ConfigError for none."""
    found = {name: given[name] for name in _DESCRIBED if name in given}
    if not isinstance(found.get("config"), dict):
        raise ConfigError(["next.json holds no description"], hint="describe the machine anew")
    found["config"] = {**found["config"], "name": old.name}
    return replace(old, **found)


@record
class ProcessRecord(Value):
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
class StatusRecord(Value):
    """status.json: what the living machine does; `since` is in seconds since 1970."""

    status: str
    since: float
    engine: str = ""

    def __post_init__(self) -> None:
        Status(self.status)


@record
class HealthRecord(Value):
    """health.json: what the health check says of the machine that the process `pid` runs."""

    pid: int
    status: str
    streak: int = 0
    log: tuple[Probed, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.status, str) or not isinstance(self.log, (list, tuple)):
            raise TypeError("no record of health")

    def after(self, found: Probed, retries: int, *, early: bool) -> HealthRecord:
        """Return the record after one more run of the check; `early` ones may fail.

        `retries` failures in a row are needed to be unhealthy.
        """
        status, streak = HEALTHY, 0
        if found["exit_code"] != 0:
            status, streak = self.status, self.streak + (not early)
            if streak >= retries:
                status = UNHEALTHY
        return HealthRecord(self.pid, status, streak, (*self.log, found)[-_KEPT_PROBES:])

    def summary(self) -> HealthSummary:
        """Return it as plain data."""
        return {"status": self.status, "streak": self.streak, "log": list(self.log)}


def load(kind: type[AnyValue], path: Path) -> AnyValue | None:
    """Return the record in a file, or None where there is no whole one."""
    data = read_json(path)
    return None if data is None else kind.from_dict(data)


def save(record: Value, path: Path) -> None:
    """Put a record into a file, at once and whole. Raises HostError."""
    write_json(path, record.to_dict())


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None where there is no whole one."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
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
        with os.fdopen(_create(temporary), "w") as file:
            file.write(json.dumps(data, default=str) + "\n")
        temporary.replace(path)
    except OSError as fault:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise host_error(fault, "write", path) from fault


def _create(path: Path) -> int:
    """Return a new file. What stands there is not this process's, and may be a link: it goes."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileExistsError:
        path.unlink()
        return os.open(path, flags, 0o600)
