"""Every environment variable that ringzero reads, in one table."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Generic, TypeVar

from ringzero import basedirs
from ringzero.errors import InvalidValueError
from ringzero.records import record

T = TypeVar("T")

TABLE: dict[str, Setting[object]] = {}


@record
class Setting(Generic[T]):
    """One environment variable: its name, how its text is read, its default, its help."""

    name: str
    parse: Callable[[str], T]
    default: Callable[[], T]
    help: str

    def __post_init__(self) -> None:
        TABLE[self.name] = self  # type: ignore[assignment]

    def get(self, otherwise: T | None = None) -> T:
        """Return the value now in the environment; raises InvalidValueError.

        Where there is none, that is `otherwise`, or the default.
        """
        text = os.environ.get(self.name)
        if text is None or text == "":
            return self.default() if otherwise is None else otherwise
        try:
            return self.parse(text)
        except ValueError as fault:
            raise InvalidValueError(
                f"{self.name}={text!r} makes no sense: {fault}", hint=self.help
            ) from fault


def _xdg(variable: str, default: str) -> Path:
    """Return our part of a base directory."""
    return _found(basedirs.ours(variable, default))


def _found(place: str) -> Path:
    if place:
        return Path(place)
    raise InvalidValueError(
        "there is no home directory: HOME is not set, and the system knows no such user",
        hint="set HOME, or RINGZERO_CACHE_DIR, RINGZERO_DATA_DIR and RINGZERO_MACHINES_DIR",
    )


def _xdg_cache() -> Path:
    return _xdg(*basedirs.CACHE)


def _xdg_machines() -> Path:
    return _xdg(*basedirs.STATE) / "machines"


def _xdg_networks() -> Path:
    return _xdg(*basedirs.STATE) / "networks"


def _pools() -> Path:
    return _found(basedirs.pools())


def _xdg_data() -> Path:
    return _xdg("XDG_DATA_HOME", ".local/share")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError("a number of seconds is not negative")
    return seconds


# A loaded host without KVM takes some 20 s for ringzero's own guests.
BOOT_TIMEOUT = Setting(
    "RINGZERO_BOOT_TIMEOUT",
    _seconds,
    lambda: 120.0,
    "seconds that a guest may take to start before whoever waits for it is told so; 0: no bound",
)
# A distribution's own system starts dozens of services.
_SYSTEM_BOOT = 600.0


def boot_bound(boot_entry: object) -> float:
    """Return how long a guest may take to start, in seconds: longer, where it boots its disk.

    0 is no bound. Raises InvalidValueError.
    """
    return BOOT_TIMEOUT.get(None if boot_entry is None else _SYSTEM_BOOT)


CACHE_DIR = Setting(
    "RINGZERO_CACHE_DIR", Path, _xdg_cache, "directory for compiled engines, translations, images"
)


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(Path(name) for name in text.split(os.pathsep) if name)


BACKING_DIRS = Setting(
    "RINGZERO_BACKING_DIRS",
    _paths,
    lambda: (),
    "directories, separated by colons, that names in disk images may lead to",
)
DATA_DIR = Setting(
    "RINGZERO_DATA_DIR",
    lambda text: Path(text).absolute(),
    _xdg_data,
    "directory for what is kept: snapshots, deployments",
)
DEBUG = Setting(
    "RINGZERO_DEBUG",
    int,
    lambda: 0,
    "0-4: 1 tracebacks, 2 translated guest blocks, 3 their LLVM IR, too, 4 their host code, too",
)


def _addresses(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first, 16), int(last or first, 16)


DEBUG_AT = Setting(
    "RINGZERO_DEBUG_AT",
    _addresses,
    lambda: (0, (1 << 64) - 1),
    "ADDRESS or FIRST-LAST, hexadecimal, linear or physical: reveal the blocks there",
)
DEBUG_COUNT = Setting("RINGZERO_DEBUG_COUNT", int, lambda: 100, "blocks to reveal at most")


def _path(text: str) -> Path | None:
    return Path(text)


DEBUG_DIR = Setting(
    "RINGZERO_DEBUG_DIR", _path, lambda: None, "directory for what is revealed (default: stderr)"
)


class Jail(Enum):
    """How a machine's process is confined (docs/jail.md)."""

    NONE = "none"
    AUTO = "auto"
    STRICT = "strict"


JAIL = Setting(
    "RINGZERO_JAIL",
    Jail,
    lambda: Jail.AUTO,
    "how the processes of machines that stay are confined: auto, strict, none",
)
ENGINE = Setting("RINGZERO_ENGINE", str, lambda: "auto", "CPU engine: auto, soft, kvm")
STORAGE_DIR = Setting(
    "RINGZERO_STORAGE_DIR",
    lambda text: Path(text).absolute(),
    lambda: DATA_DIR.get() / "storage",
    "directory with a file for each storage pool",
)
SERVE_DIR = Setting(
    "RINGZERO_SERVE_DIR",
    lambda text: Path(text).absolute(),
    lambda: _xdg(*basedirs.STATE) / "serve",
    "directory for what `ringzero serve` keeps: tokens, log of events",
)
SERVE_SOCKET = Setting(
    "RINGZERO_SERVE_SOCKET",
    lambda text: Path(text).absolute(),
    lambda: _found(basedirs.runtime()) / "serve.sock",
    "socket of the HTTP API of `ringzero serve`",
)
FIRECRACKER_NETWORK = Setting(
    "RINGZERO_FIRECRACKER_NETWORK",
    str,
    lambda: "tap",
    "where interfaces of `ringzero firecracker` lead: to the tap that is named, or user",
)
MIRROR = Setting(
    "RINGZERO_MIRROR", str, lambda: "", "Debian mirror (default: this machine's own apt sources)"
)
MIRROR_KEYS = Setting(
    "RINGZERO_MIRROR_KEYS",
    _path,
    lambda: None,
    "file of OpenPGP keys that sign the mirror's releases, without apt (default: Debian's)",
)
NETWORKS_DIR = Setting(
    "RINGZERO_NETWORKS_DIR",
    lambda text: Path(text).absolute(),
    _xdg_networks,
    "directory with one directory for each network by name",
)
MACHINES_DIR = Setting(
    "RINGZERO_MACHINES_DIR",
    lambda text: Path(text).absolute(),
    _xdg_machines,
    "directory with one directory for each named machine",
)
POOL_DIR = Setting(
    "RINGZERO_POOL_DIR",
    lambda text: Path(text).absolute(),
    _pools,
    "directory with one directory for each pool of machines that are ready",
)


def _size(text: str) -> int:
    from ringzero.units import parse_size

    return parse_size(text)


TEMPLATES = Setting(
    "RINGZERO_TEMPLATES",
    _size,
    lambda: 4 << 30,
    "SIZE that saved starts of machines may take in the cache (default: 4G); 0: none are made",
)


def _items(text: str) -> tuple[str, ...]:
    return tuple(item for item in (part.strip() for part in text.split(",")) if item)


IMAGE_LIMIT = Setting(
    "RINGZERO_IMAGE_LIMIT",
    _size,
    lambda: 64 << 30,
    "SIZE that the layers of one image may unpack to (default: 64G)",
)
HTTP_REGISTRIES = Setting(
    "RINGZERO_HTTP_REGISTRIES",
    _items,
    lambda: (),
    "HOST[:PORT],...: registries of images to be asked by plain HTTP (those of this host are)",
)
INSECURE_REGISTRIES = Setting(
    "RINGZERO_INSECURE_REGISTRIES",
    _items,
    lambda: (),
    "HOST[:PORT],...: registries whose certificates are not checked, and that may speak plain HTTP",
)
CERTS_DIR = Setting(
    "RINGZERO_CERTS_DIR",
    _path,
    lambda: None,
    "folder with HOST[:PORT]/ca.crt for registries, before those of containers and Docker",
)
REGISTRY_MIRRORS = Setting(
    "RINGZERO_REGISTRY_MIRRORS",
    _items,
    lambda: (),
    "[REGISTRY=]HOST[:PORT] or URL,...: where images are asked for first (default: for docker.io)",
)


def _policy() -> Path | None:
    place = basedirs.ours(*basedirs.CONFIG)
    path = Path(place) / "images.toml"
    return path if place and path.exists() else None


IMAGE_POLICY = Setting(
    "RINGZERO_IMAGE_POLICY",
    _path,
    _policy,
    "file that says which images must be signed, by whom (default: ringzero/images.toml of "
    "~/.config, where it is there)",
)
END_WITH_CALLER = Setting(
    "RINGZERO_END_WITH_CALLER",
    lambda text: text,
    lambda: "",
    "set by --host ssh://: end as at a hangup when nobody reads an output any more",
)
HOST = Setting(
    "RINGZERO_HOST",
    lambda text: text,
    lambda: "",
    "the host that commands are about: a URL or a name, as --host has it; local: this one",
)
TOKEN = Setting(
    "RINGZERO_TOKEN",
    lambda text: text,
    lambda: "",
    "the token that lets one in over https, where no --token-file is given",
)
KEY_PASSWORD = Setting(
    "RINGZERO_KEY_PASSWORD",
    lambda text: text,
    lambda: "",
    "password of the private key that signs images",
)
