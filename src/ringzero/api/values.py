"""The values that actions take and give: states, events, ends, summaries. Plain data, no I/O."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, NotRequired, Self, TypedDict

from ringzero.errors import GuestError, RingzeroError
from ringzero.records import field, field_names, record


class Status(enum.Enum):
    """What a machine is doing, as `ringzero ps` shows it."""

    DEFINED = "defined"  # described, and never started
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    ENDED = "ended"  # its process wrote down why
    DEAD = "dead"  # its process went away without a word

    @property
    def alive(self) -> bool:
        """Whether a process stands behind it."""
        return self not in GONE


GONE = frozenset((Status.DEFINED, Status.ENDED, Status.DEAD))
ALIVE = frozenset(Status) - GONE
ANY = frozenset(Status)


class EventKind(enum.Enum):
    """What can happen to a machine in the eyes of others."""

    CREATED = "created"  # its name appeared
    STARTED = "started"  # the guest runs
    PAUSED = "paused"
    RESUMED = "resumed"
    STOPPING = "stopping"
    ENDED = "ended"  # no process runs it any more
    RENAMED = "renamed"
    REMOVED = "removed"
    CHANGED = "changed"  # its metadata, or its description from the next start on


class Value:
    """A record that is plain data to others."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self | None:
        """Return the record that plain data describe, or None where they describe none."""
        known = set(field_names(cls))
        try:
            return cls(**{key: value for key, value in data.items() if key in known})
        except (TypeError, ValueError, KeyError, AttributeError, RingzeroError):
            return None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return {name: getattr(self, name) for name in field_names(type(self))}


@record
class ExitRecord(Value):
    """How a machine ended. `reason` is a word for programs, `detail` for people.

    `exit_code` is what `ringzero run` would have ended with; `time` is in seconds since 1970.
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


@record
class Event(Value):
    """Something that happened to a machine; `time` is in seconds since 1970.

    `detail` has "exit" (an ExitRecord) for one that ended, "from" for one that was renamed.
    """

    kind: str
    machine: str
    time: float
    detail: dict[str, Any] = field(default_factory=dict)


# Of a health check, in seconds: thirty years.
_MAX_TIME = 1e9


@record
class HealthCheck(Value):
    """A command that tells by its status whether what runs in a guest is well.

    Docker's HEALTHCHECK: `words` are run each `interval` seconds, and have `timeout`; `retries`
    failures in a row are needed to be unhealthy. In the first `start_period` seconds they are
    run each `start_interval`, and failures do not count until one has succeeded.
    """

    words: tuple[str, ...]
    interval: float = 30.0
    timeout: float = 30.0
    start_period: float = 0.0
    start_interval: float = 5.0
    retries: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(map(str, self.words)))
        times = (self.interval, self.timeout, self.start_period, self.start_interval)
        if not self.words or not 0 <= min(times) <= max(times) <= _MAX_TIME or self.retries < 1:
            raise ValueError("no check")


class Probed(TypedDict):
    """One run of a health check: when it began and ended, its status and output.

    Times are in seconds since 1970; `exit_code` is None for one that took too long.
    """

    start: float
    end: float
    exit_code: int | None
    output: str


class HealthSummary(TypedDict):
    """`status` is starting, healthy or unhealthy; `streak` counts failures in a row."""

    status: str
    streak: int
    log: list[Probed]


class MachineSummary(TypedDict):
    """What the files of a machine say. Times are in seconds since 1970."""

    name: str
    id: str
    status: str
    pid: int | None
    created: float | None
    since: float | None
    engine: str
    image: str
    command: list[str]
    parent: str
    foreground: bool
    config: dict[str, Any]
    directory: str
    exit: NotRequired[dict[str, Any]]
    # Of one that runs, and whose image has a health check.
    health: NotRequired[HealthSummary]
    # What its process knows besides.
    agent: NotRequired[dict[str, Any] | None]
    watchers: NotRequired[dict[str, int]]
    stats: NotRequired[dict[str, Any]]
    # What confines it, by the mechanism: whether that `holds`, and in words what it does.
    jail: NotRequired[dict[str, dict[str, Any]]]


class DiskJobSummary(TypedDict):
    """A block job; states are QEMU's (docs/block-jobs.md), sizes in bytes.

    `disk` is its number in the machine. `speed` is in bytes a second, 0 for any. `ready` tells
    that it may be completed, `error` what it failed of.
    """

    id: str
    kind: str
    disk: int
    state: str
    offset: int
    length: int
    speed: int
    target: str
    ready: bool
    cancelled: bool
    error: str


class DiskExportSummary(TypedDict):
    """A disk that a machine exports by NBD; `url` is what clients call it."""

    name: str
    disk: int
    read_only: bool
    clients: int
    url: str


class MetadataSummary(TypedDict):
    """What is noted of a machine; `elements` are texts by key."""

    uuid: str
    title: str
    description: str
    autostart: bool
    elements: dict[str, str]


class PortSummary(TypedDict):
    """A port of the host that leads to a machine. `protocol` is tcp or udp."""

    address: str
    port: int
    guest_port: int
    protocol: str


class ShareSummary(TypedDict):
    """A folder of the host that a machine has at `target`."""

    path: str
    target: str
    read_only: bool


class NetworkMember(TypedDict):
    """A machine on a network; what it sent and received since it joined, in frames and bytes."""

    name: str
    mac: str
    address: str
    ports: list[dict[str, Any]]
    sent: int
    sent_bytes: int
    received: int
    received_bytes: int
    dropped: int
    refused: int


class NetworkSummary(TypedDict):
    """A network by name. `leases` are {"address", "name"} by MAC address.

    Machines do not join one that is not `active`. `metadata` are texts by key.
    """

    name: str
    uuid: str
    active: bool
    autostart: bool
    metadata: dict[str, str]
    mode: str
    subnet: str
    gateway: str
    first: str
    last: str
    fixed: dict[str, str]
    host: bool
    allow: list[str] | None
    leases: dict[str, dict[str, str]]
    machines: list[NetworkMember]
    directory: str
    notes: list[str]


class StoragePoolSummary(TypedDict):
    """A directory whose files are volumes; bytes of its file system, and how many are volumes."""

    name: str
    uuid: str
    path: str
    active: bool
    autostart: bool
    volumes: int
    capacity: int
    allocation: int
    available: int


class VolumeSummary(TypedDict):
    """A disk in a storage pool. Sizes are in bytes: `capacity` is what a guest sees.

    `allocation` is what it takes, `backing` the image below it. `modified` is in seconds since
    1970, `mode` the permissions of its file.
    """

    pool: str
    name: str
    path: str
    format: str
    capacity: int
    allocation: int
    physical: int
    backing: str | None
    backing_format: str | None
    modified: float
    mode: int
    user: int
    group: int


class CommandEnd(TypedDict):
    """How a command in a guest ended: its exit status, 128 + N for the signal N."""

    status: int


class ImageSummary(TypedDict):
    """A guest image in the cache: of `kind` "own", "container" or "disk"; `size` is in bytes.

    One of ringzero's own has packages, kernel, initrd and command line; a container's has its
    root file system, its blobs (digests) and what it runs; an imported machine has its disks.
    """

    kind: str
    name: str
    names: list[str]
    digest: str
    size: int
    packages: NotRequired[list[str]]
    kernel: NotRequired[str]
    initrd: NotRequired[str]
    command_line: NotRequired[str]
    root: NotRequired[str]
    created: NotRequired[str]
    config: NotRequired[str]
    layers: NotRequired[list[str]]
    entrypoint: NotRequired[list[str]]
    cmd: NotRequired[list[str]]
    env: NotRequired[list[str]]
    user: NotRequired[str]
    workdir: NotRequired[str]
    stop_signal: NotRequired[str]
    ports: NotRequired[list[str]]
    volumes: NotRequired[list[str]]
    healthcheck: NotRequired[list[str]]
    machine: NotRequired[dict[str, Any]]
    memory: NotRequired[str | None]
    disks: NotRequired[list[str]]


class SnapshotFacts(TypedDict):
    """A snapshot by itself. Sizes are in bytes; `taken` is in seconds since 1970."""

    name: str
    id: str
    taken: float
    machine: str | None
    memory: int | None
    disks: list[int]
    engine: str | None
    directory: str


class SnapshotSummary(SnapshotFacts):
    """A snapshot among the others: its parent, and what of it is its own or shared, in bytes."""

    parent: str | None
    own: int
    shared: int
