"""The names of files that images hold, read and written: no file is looked at here.

QEMU's images (qcow2, QED) name their backing file by a path, by `file:` and a path, or by a
`json:` tree of block drivers (QEMU, "Device URL Syntax", and BlockdevOptions in qapi). What
such a tree says about the bytes is followed, what only tunes is passed over, everything else
is refused: a key that is not known may change what is read.

Images that came from Windows or ESX name their parents and parts by paths of that host.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ringzero.disk.formatnames import format_name
from ringzero.errors import DiskFormatError, DiskUnsupportedError, InvalidValueError
from ringzero.records import field, record
from ringzero.units import parse_size

_PREFIX = re.compile(r"([A-Za-z][A-Za-z0-9+._-]*):")
# What QEMU and libvirt reach by name, and is no file of this host.
_PROTOCOLS = frozenset({
    "blkdebug", "blklogwrites", "blkreplay", "blkverify", "fat", "fd", "ftp", "ftps", "gluster",
    "gluster+rdma", "gluster+tcp", "gluster+unix", "host_cdrom", "host_device", "http", "https",
    "iscsi", "iser", "nbd", "nbd+tcp", "nbd+unix", "nbd+vsock", "nbds", "nbds+tcp", "nfs",
    "null-aio", "null-co", "nvme", "quorum", "rbd", "replication", "scsi", "sftp", "sheepdog",
    "sheepdog+tcp", "sheepdog+unix", "smb", "ssh", "tftp", "throttle", "vvfat", "vxhs",
})  # fmt: skip

# Keys of a json: name that change how bytes are reached, and not which.
_TUNING = frozenset({
    "aio", "aio-max-batch", "auto-read-only", "cache", "cache-clean-interval", "cache-size",
    "detect-zeroes", "discard", "discard-no-unref", "drop-cache", "force-share",
    "l2-cache-entry-size", "l2-cache-size", "lazy-refcounts", "locking", "node-name",
    "overlap-check", "pass-discard-other", "pass-discard-request", "pass-discard-snapshot",
    "read-only", "refcount-cache-size", "x-check-cache-dropped",
})  # fmt: skip
# Drivers that are the file itself.
_FILE_DRIVERS = ("file", "host_device")
# A name of windows in windows is a mistake, or an attack on the stack.
_MAX_TREE = 8

_DRIVE = re.compile(r"[A-Za-z]:[\\/]?")


@record
class FileName:
    """What a name stands for: a path, a format when it is said, and options of that format.

    `window` is (offset, size) in bytes when the image is that part of the file; size None: to
    its end.
    """

    path: str
    format: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    window: tuple[int, int | None] | None = None


def parse_name(name: str, format: str | None) -> FileName:
    """Return what the name of a backing file means, by QEMU's rules.

    `format` is the one that the image names beside it. Raises DiskFormatError for what is no
    name, DiskUnsupportedError for protocols and for trees that say more than is known here.
    """
    format = None if format is None else format_name(format)
    if name.startswith("json:"):
        return _parse_json(name, format)
    return FileName(plain_path(name.removeprefix("file:")), format)


def moved_name(found: FileName) -> FileName | None:
    """Return what a name would be beside the image, for one that is absolute on some system."""
    names = host_paths([found.path], beside=False)
    if len(names) == 1:
        return None
    return FileName(names[-1], found.format, found.options, found.window)


def parse_whole_name(name: str) -> str:
    """Return the path that the name of a data file means; DiskUnsupportedError for a part of it."""
    found = parse_name(name, "raw")
    if found.window is not None or found.options:
        raise DiskUnsupportedError(f"an image names a part of itself as {name[:200]}")
    return found.path


def literal_path(name: str) -> str:
    """Return a name that may be a file's; DiskFormatError for others."""
    if "\0" in name or not name or _is_no_path(name):
        raise DiskFormatError("an image names a file that cannot exist", name=repr(name))
    return name


def plain_path(name: str) -> str:
    """Return a name that is a path; DiskFormatError, DiskUnsupportedError for protocols."""
    prefix = _PREFIX.match(name)
    if prefix and (prefix[1].lower() in _PROTOCOLS or prefix[1] == "json"):
        raise DiskUnsupportedError(
            f"an image names its backing file by the protocol {prefix[0]!r}: {name[:200]}",
            hint="only files are supported; copy it to this host and rebase",
        )
    return literal_path(name)


def _is_no_path(name: str) -> bool:
    """Whether no file can have a name: halves of characters, from broken UTF-16."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return True
    return False


def name_to_write(name: str) -> str:
    """Return a name for an image such that every reader takes a path for a path.

    A colon behind the first word would be a protocol to QEMU; what is one stays.
    """
    prefix = _PREFIX.match(name)
    if prefix and prefix[1].lower() not in (*_PROTOCOLS, "json", "file"):
        return f"./{name}"
    return name


def relative_to(image: Path, name: str) -> str:
    """Return the name of a file from the directory of `image`, links followed on the way."""
    if not name.startswith("/"):
        return name
    path = Path(name)
    start = os.path.realpath(image.absolute().parent)
    found = os.path.relpath(path.parent.resolve() / path.name, start)
    return f"./{found}" if _PREFIX.match(found) else found


def without_dot(name: str) -> str:
    """Return a path without "./" in front, where it says the same."""
    short = name.removeprefix("./")
    return name if not short or _PREFIX.match(short) else short


def host_paths(names: Iterable[str], *, beside: bool) -> list[str]:
    """Return what names from any system may mean on this host, the likeliest first.

    `names` in the order in which they are to be tried; what they end in, beside the image,
    comes last: for relative names only with `beside`.
    """
    listed = [name for name in names if name]
    found: list[str] = []
    last: list[str] = []
    for name in listed:
        slashes = name.replace("\\", "/")
        foreign = bool(_DRIVE.match(name)) or slashes.startswith("//")
        found.append(name)
        if slashes != name and not foreign:
            found.append(without_dot(slashes))
        base = slashes.rpartition("/")[2]
        if base not in ("", ".", "..") and (beside or foreign or slashes.startswith("/")):
            last.append(base)
    return list(dict.fromkeys([*found, *last]))


# ---- QEMU's json: names ---------------------------------------------------


def _parse_json(name: str, format: str | None) -> FileName:
    import json

    try:
        tree = json.loads(name.removeprefix("json:"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as fault:
        raise DiskFormatError(f"not a file name: {name[:200]}") from fault
    if not isinstance(tree, dict):
        raise DiskFormatError(f"not a file name: {name[:200]}")
    try:
        return _Reader(name).image(_nested(tree), format)
    except (ValueError, InvalidValueError) as fault:
        raise DiskUnsupportedError(
            f"an image names its backing file as {name[:200]}: {fault}",
            hint="rebase it onto a plain file name with `ringzero disk rebase -u`",
        ) from fault


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _nested(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree whose keys such as "file.filename" are trees."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        head, dot, rest = key.partition(".")
        if not dot:
            if key in found:
                raise ValueError(f"{key!r} is given twice")
            found[key] = value
            continue
        inner = found.setdefault(head, {})
        if not isinstance(inner, dict) or rest in inner:
            raise ValueError(f"{key!r} is given twice")
        inner[rest] = value
    return found


class _Reader:
    """Reads one json: name. Raises ValueError with what cannot be followed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def image(self, tree: dict[str, Any], format: str | None) -> FileName:
        driver = self._driver(tree)
        if "file" not in tree:
            # The file itself, as the backing file: its bytes are the disk's.
            if driver not in (*_FILE_DRIVERS, None):
                raise ValueError(f"the driver {driver!r} has no file")
            if format not in (None, "raw"):
                raise ValueError(f"it is a plain file here, and {format!r} beside it")
            path, window = self._file({**tree, **({"driver": driver} if driver else {})}, 0)
            return FileName(path, format or ("raw" if driver else None), {}, window)
        said = None if driver is None else format_name(driver)
        if said is not None and format not in (None, said):
            raise ValueError(f"its format is {driver!r} here, and {format!r} beside it")
        said = said or format
        options = self._window(tree) if said == "raw" else {}
        inner = tree.pop("file")
        self._only_tuning(tree)
        path, window = self._file(inner, 0)
        return FileName(path, said, options, window)

    def _file(self, given: Any, depth: int) -> tuple[str, tuple[int, int | None] | None]:
        """Return the path of a protocol node, and the part of the file that it is."""
        if not isinstance(given, dict) or depth > _MAX_TREE:
            raise ValueError("its file is no description of a file")
        tree = _nested(given)
        driver = self._driver(tree)
        if driver == "raw":
            outer = self._window(tree)
            path, window = self._file(tree.pop("file", None), depth + 1)
            self._only_tuning(tree)
            return path, _cut_window(window, outer.get("offset", 0), outer.get("size"))
        if driver not in (*_FILE_DRIVERS, None):
            raise ValueError(f"the driver {driver!r} is not a plain file's")
        path = tree.pop("filename", None)
        self._only_tuning(tree)
        if not isinstance(path, str) or not path or "\0" in path:
            raise ValueError("its file has no name")
        return path if driver else plain_path(path.removeprefix("file:")), None

    def _driver(self, tree: dict[str, Any]) -> str | None:
        driver = tree.pop("driver", None)
        if not isinstance(driver, str | None):
            raise ValueError("its driver is no name")
        return driver

    def _window(self, tree: dict[str, Any]) -> dict[str, int]:
        found: dict[str, int] = {}
        for key in ("offset", "size"):
            if key not in tree:
                continue
            value = tree.pop(key)
            number = parse_size(value) if isinstance(value, str) else value
            if type(number) is not int or number < 0 or (key == "size" and not number):
                raise ValueError(f"{key} is {value!r}")
            found[key] = number
        return found

    def _only_tuning(self, tree: Mapping[str, Any]) -> None:
        unknown = sorted(key for key in tree if key not in _TUNING)
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not known here")


def _cut_window(
    window: tuple[int, int | None] | None, offset: int, size: int | None
) -> tuple[int, int | None]:
    """Return a part of a window, or of a whole file."""
    start, room = window or (0, None)
    if room is not None:
        if offset + (size or 0) > room:
            raise ValueError("a part of it is outside the part around it")
        size = room - offset if size is None else size
    return start + offset, size
