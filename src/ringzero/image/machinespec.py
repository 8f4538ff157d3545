"""What an image says of the machine that it runs in: memory, vCPUs, services, readiness.

It stands in a container image's configuration (config.md) as the member `Machine` of `config`,
beside Docker's own extensions, which other programs pass over:

    {"Memory": BYTES, "CPUs": N, "NICs": N, "Snapshot": true, "Kernel": PATH,
     "Disks": [{"Size": BYTES, "Path": PATH, "Format": "ext4"}],
     "Services": [{"Name": NAME, "Command": [...], "Restart": WHEN, "User": USER, "After": [...]}],
     "Ready": {"Test": ["CMD", ...] | ["TCP", PORT] | ["HTTP", URL], "Interval": NS, "Timeout": NS}}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ringzero.errors import GuestImageError
from ringzero.records import record

MEMBER = "Machine"
RESTARTS = ("always", "no", "on-failure")
TESTS = ("CMD", "TCP", "HTTP")
# For programs that shells read them in; the guest has a file of that name.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# What takes no part of a shell's word apart, beyond what a user's name may be.
_USER = re.compile(r"[A-Za-z0-9_.-]{0,64}(?::[A-Za-z0-9_.-]{1,64})?")
# Of the image's tree, from its root; nothing in it leads out, or ends a word of a command line.
PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9_.+@=-]+)+")
_URL = re.compile(r"https?://[!-~]{1,2000}")
# A zero ends a word, and half a character is none.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_MOST_SERVICES, _MOST_WORDS, MOST_CPUS = 100, 4096, 255
_MOST_MEMORY = 1 << 46
# As many as VirtualBox gives a machine, and a board of ours has room for.
MOST_NICS = 8
# A board has room for no more; a journal and what it serves fit into 8 MiB, and to make a file
# system of 1 TiB takes seconds.
MOST_DISKS, LEAST_DISK, MOST_DISK = 8, 8 << 20, 1 << 40
_MOST_PATH = 1024
# File systems that a machine's disk may have when it is new.
FORMATS = ("ext4",)
_SECOND = 1_000_000_000
# Of a day at most; without a bound nobody would hear that it is never ready.
_LONGEST = 86_400 * _SECOND


@record
class Service:
    """A command that starts with the machine; `restart` is one of RESTARTS.

    `after` names services that are started before it; `user` is USER[:GROUP], "" the image's.
    """

    name: str
    command: tuple[str, ...]
    restart: str = "on-failure"
    user: str = ""
    after: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return it as an image's configuration has it."""
        return {
            "Name": self.name,
            "Command": list(self.command),
            "Restart": self.restart,
            "User": self.user,
            "After": list(self.after),
        }


@record
class Ready:
    """What must answer before a machine is ready: `test` is one of TESTS and its words.

    It is asked every `interval` nanoseconds until `timeout` nanoseconds are over.
    """

    test: tuple[str, ...]
    interval: int = _SECOND // 5
    timeout: int = 60 * _SECOND

    def plain(self) -> dict[str, Any]:
        """Return it as an image's configuration has it."""
        return {"Test": list(self.test), "Interval": self.interval, "Timeout": self.timeout}


@record
class DataDisk:
    """A disk of `size` bytes at the directory `path`, empty when a machine is new."""

    size: int
    path: str
    format: str = "ext4"

    def plain(self) -> dict[str, Any]:
        """Return it as an image's configuration has it."""
        return {"Size": self.size, "Path": self.path, "Format": self.format}


@record
class MachineSpec:
    """What an image asks for; `memory` in bytes. None and nothing are left to who runs it.

    `snapshot` says that machines go on from a memory in which the services run. `kernel` is a file
    of the image's tree. `nics` is how many network interfaces an imported machine had.
    """

    memory: int | None = None
    cpus: int | None = None
    services: tuple[Service, ...] = ()
    ready: Ready | None = None
    snapshot: bool = False
    kernel: str | None = None
    disks: tuple[DataDisk, ...] = ()
    nics: int | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as an image's configuration has it, without what is not said."""
        found: dict[str, Any] = {}
        if self.memory is not None:
            found["Memory"] = self.memory
        if self.cpus is not None:
            found["CPUs"] = self.cpus
        if self.nics is not None:
            found["NICs"] = self.nics
        if self.services:
            found["Services"] = [service.plain() for service in self.services]
        if self.ready is not None:
            found["Ready"] = self.ready.plain()
        if self.snapshot:
            found["Snapshot"] = True
        if self.kernel is not None:
            found["Kernel"] = self.kernel
        if self.disks:
            found["Disks"] = [disk.plain() for disk in self.disks]
        return found


def read(value: object) -> MachineSpec:
    """Return what the member `Machine` of a configuration says. Raises GuestImageError."""
    if value is None:
        return MachineSpec()
    found = _object(value, MEMBER)
    services = found.get("Services", [])
    if not isinstance(services, list) or len(services) > _MOST_SERVICES:
        raise _wrong("Services")
    ready, snapshot = found.get("Ready"), found.get("Snapshot", False)
    if not isinstance(snapshot, bool):
        raise _wrong("Snapshot")
    return MachineSpec(
        _number(found, "Memory", _MOST_MEMORY),
        _number(found, "CPUs", MOST_CPUS),
        tuple(_service(item) for item in services),
        None if ready is None else _ready(ready),
        snapshot,
        _kernel(found.get("Kernel")),
        _disks(found.get("Disks", [])),
        _nics(found.get("NICs")),
    )


def is_path(value: object) -> bool:
    """Whether a path is one of an image's tree that can be told to a guest."""
    return isinstance(value, str) and len(value) <= _MOST_PATH and bool(PATH.fullmatch(value))


def _nics(value: object) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= MOST_NICS:
        raise _wrong("NICs")
    return value


def _kernel(value: object) -> str | None:
    if value is not None and not is_path(value):
        raise _wrong("Kernel")
    return None if value is None else str(value)


def _disks(value: object) -> tuple[DataDisk, ...]:
    if not isinstance(value, list) or len(value) > MOST_DISKS:
        raise _wrong("Disks")
    disks = tuple(_disk(item) for item in value)
    if len({disk.path for disk in disks}) < len(disks):
        raise _wrong("Disks")
    return disks


def _disk(value: object) -> DataDisk:
    found = _object(value, "Disks")
    size, path, kind = found.get("Size"), found.get("Path"), found.get("Format", "ext4")
    if type(size) is not int or not LEAST_DISK <= size <= MOST_DISK:
        raise _wrong("Size")
    if not is_path(path) or kind not in FORMATS:
        raise _wrong("Disks")
    return DataDisk(size, str(path), kind)


def _service(value: object) -> Service:
    found = _object(value, "Services")
    name, user = found.get("Name"), found.get("User", "")
    restart, command = found.get("Restart", "on-failure"), _words(found.get("Command"), "Command")
    after = _words(found.get("After", []), "After")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise _wrong("Name")
    if not isinstance(user, str) or not _USER.fullmatch(user):
        raise _wrong("User")
    if restart not in RESTARTS or not command:
        raise _wrong("Services")
    if not all(NAME.fullmatch(other) for other in after):
        raise _wrong("After")
    return Service(name, command, restart, user, after)


def _ready(value: object) -> Ready:
    found = _object(value, "Ready")
    test = _words(found.get("Test"), "Test")
    kind, *words = test or ("",)
    good = kind in TESTS and bool(words)
    if kind == "TCP":
        good = len(words) == 1 and words[0].isascii() and words[0].isdigit()
        good = good and 0 < int(words[0][:9]) < 1 << 16
    elif kind == "HTTP":
        good = len(words) == 1 and _URL.fullmatch(words[0]) is not None
    if not good:
        raise _wrong("Test")
    interval = _number(found, "Interval", _LONGEST)
    timeout = _number(found, "Timeout", _LONGEST)
    defaults = Ready(test)
    return Ready(test, interval or defaults.interval, timeout or defaults.timeout)


def _object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(name)
    return value


def _number(found: Mapping[str, Any], name: str, most: int) -> int | None:
    value = found.get(name)
    if value is None:
        return None
    if type(value) is not int or not 0 < value <= most:
        raise _wrong(name)
    return value


def _words(value: object, name: str) -> tuple[str, ...]:
    words = value if isinstance(value, list) and len(value) <= _MOST_WORDS else [None]
    if not all(isinstance(word, str) and not _NO_TEXT.search(word) for word in words):
        raise _wrong(name)
    return tuple(words)


def _wrong(name: str) -> GuestImageError:
    return GuestImageError(
        f"the image's configuration has a bad {name} in {MEMBER}",
        hint="the image is damaged, or of a newer ringzero",
    )
