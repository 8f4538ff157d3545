"""Boot Loader Specification entries: one file per entry (uapi-group.org/specifications, UAPI.1).

Read by systemd-boot and, in Fedora and its kin, by GRUB, whose variables may stand in them. Their
order is that of UAPI.1, "Sorting"; versions are compared as UAPI.10 says.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable

from ringzero.errors import FileSystemError, NotFoundError
from ringzero.image.bootloader.contract import (
    BootEntry,
    FileAt,
    Volume,
    exists,
    listing,
    read_text,
)

_MAX_ENTRIES = 500
_PARTS = re.compile(r"[0-9]+|[A-Za-z]+|[~^.-]")
_SEPARATORS = {"~": -1, "-": 1, "^": 2, ".": 3}
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")
# Boot counting: "+3-1" before the suffix says three tries left, one done.
_TRIES = re.compile(r"\+(\d+)(-\d+)?$")

# What an entry is sorted by.
Order = tuple[object, ...]


def entries(
    volume: Volume, directory: str, value: Callable[[str], str] = lambda name: ""
) -> list[BootEntry]:
    """Return the entries in a directory, the one that is booted by default first.

    `value` gives GRUB's variables. Entries without a kernel are left out.
    """
    return in_order(ordered(volume, directory, value))


def ordered(
    volume: Volume, directory: str, value: Callable[[str], str] = lambda name: ""
) -> list[tuple[Order, BootEntry]]:
    """Return the entries in a directory, each with what it is sorted by."""
    found = []
    names = [name for name in listing(volume, directory) if name.endswith(".conf")]
    for name in names[:_MAX_ENTRIES]:
        try:
            fields = _fields(read_text(volume, f"{directory}/{name}"))
        except (NotFoundError, FileSystemError):
            continue
        entry = _entry(volume, name.removesuffix(".conf"), fields, value)
        if entry is not None:
            texts = (fields.get(key, [""])[0] for key in ("sort-key", "machine-id", "version"))
            found.append((order(name, *texts), entry))
    return found


def in_order(found: Iterable[tuple[Order, BootEntry]]) -> list[BootEntry]:
    """Return entries by what they are sorted by, the one that is booted by default first."""
    return [entry for _, entry in sorted(found, key=lambda item: item[0], reverse=True)]


def _fields(text: str) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, rest = line.strip().partition(" ")
        if "\t" in key:
            key, _, rest = line.strip().partition("\t")
        if key and not key.startswith("#") and rest.strip():
            fields.setdefault(key, []).append(rest.strip())
    return fields


def _entry(
    volume: Volume, name: str, fields: dict[str, list[str]], value: Callable[[str], str]
) -> BootEntry | None:
    kernel = fields.get("linux") or fields.get("uki") or fields.get("efi")
    if not kernel or fields.get("architecture", ["x64"])[0].lower() not in ("x64", "x86-64"):
        return None

    def expanded(text: str) -> str:
        return _VARIABLE.sub(lambda match: value(match[1]), text)

    initrds = [path for line in fields.get("initrd", ()) for path in expanded(line).split()]
    title = " ".join(fields.get("title", [name]))
    identifier = _TRIES.sub("", name)
    own = path_of(volume, kernel[0])
    return BootEntry(
        identifier,
        title,
        own,
        tuple(path_of(volume, path) for path in initrds),
        expanded(" ".join(fields.get("options", ()))).strip(),
        "Boot Loader Specification",
    )


def path_of(volume: Volume, path: str) -> FileAt:
    """Return the file at a path of the partition; some installers write it as the system sees it.

    That is with /boot before it, where a partition of its own is mounted there.
    """
    path = "/" + path.lstrip("/")
    short = path.removeprefix("/boot")
    if not exists(volume, path) and short != path and exists(volume, short):
        path = short
    if not exists(volume, path) and exists(volume, "/boot" + path):
        path = "/boot" + path
    return FileAt(volume, path)


def order(name: str, sort_key: str = "", machine_id: str = "", version: str = "") -> Order:
    """Return what the entry in a file called `name` is sorted by, descending.

    An entry that has no tries left ("NAME+0.conf", "NAME+0-3.efi") is behind all others. Names
    are compared with their suffix, as systemd-boot does: "arch" goes before "arch-fallback".
    """
    stem, dot, suffix = name.rpartition(".")
    tries = _TRIES.search(stem)
    identifier = _TRIES.sub("", stem) + dot + suffix
    return (
        tries is None or int(tries[1][:9]) > 0,
        bool(sort_key),
        # Sort keys and machine IDs ascend.
        _ascending(sort_key),
        _ascending(machine_id) if sort_key else (),
        version_key(version) if sort_key else (),
        version_key(identifier),
    )


def _ascending(text: str) -> tuple[int, ...]:
    """Return a key that is the smaller, the later a text comes."""
    return (*(-ord(c) for c in text), 1)


def version_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts versions: "~", the end, "-", "^", ".", letters, numbers."""
    key = []
    for part in _PARTS.findall(text):
        if part.isdecimal():
            digits = part.lstrip("0")
            key.append((5, len(digits), digits))
        elif part.isalpha():
            key.append((4, 0, part))
        else:
            key.append((_SEPARATORS[part], 0, ""))
    return (*key, (0, 0, ""))


def default_entry(places: Iterable[tuple[Volume, str]], found: list[BootEntry]) -> BootEntry | None:
    """Return the entry that systemd-boot's loader.conf calls the default; else the first.

    `places` are volumes, each with the directory in which it has its `loader`.
    """
    pattern = ""
    for volume, top in places:
        try:
            fields = _fields(read_text(volume, f"{top}/loader/loader.conf"))
        except (NotFoundError, FileSystemError):
            continue
        pattern = _plain(fields.get("default", [""])[0])
        break
    if pattern and not pattern.startswith("@"):
        for entry in found:
            if fnmatch.fnmatchcase(_plain(entry.id), pattern):
                return entry
    return found[0] if found else None


def _plain(name: str) -> str:
    """Return the name of an entry or a pattern of names as they are compared."""
    return name.lower().removesuffix(".conf").removesuffix(".efi")
