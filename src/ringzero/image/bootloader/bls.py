"""Boot Loader Specification entries: one file per entry (uapi-group.org/specifications, UAPI.1).

Read by systemd-boot and, in Fedora and its kin, by GRUB, whose variables may stand in them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

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
_DIGITS = re.compile(r"[0-9]+|[A-Za-z]+|[~^.-]")
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")
# Boot counting: "-3-1" before the suffix says three tries left, one done.
_TRIES = re.compile(r"\+\d+(-\d+)?$")


def entries(
    volume: Volume, directory: str, value: Callable[[str], str] = lambda name: ""
) -> list[BootEntry]:
    """Return the entries in a directory, the one that is booted by default first.

    `value` gives GRUB's variables. Entries without a kernel are left out.
    """
    found = []
    names = [name for name in listing(volume, directory) if name.endswith(".conf")]
    for name in names[:_MAX_ENTRIES]:
        try:
            fields = _fields(read_text(volume, f"{directory}/{name}"))
        except (NotFoundError, FileSystemError):
            continue
        entry = _entry(volume, name.removesuffix(".conf"), fields, value)
        if entry is not None:
            found.append((_order(fields, name), entry))
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


def _order(fields: dict[str, list[str]], name: str) -> tuple[object, ...]:
    """Return what entries are sorted by, descending: sort-key, machine-id, version, file name."""
    sort_key = fields.get("sort-key", [""])[0]
    version = fields.get("version", [""])[0]
    tried_out = re.search(r"\+0(-\d+)?\.conf$", name) is not None
    return (
        not tried_out,
        bool(sort_key),
        # Sort keys and machine IDs ascend.
        (*(-ord(c) for c in sort_key), 1),
        (*(-ord(c) for c in fields.get("machine-id", [""])[0]), 1),
        version_key(version) if version else (),
        version_key(name.removesuffix(".conf")),
    )


def version_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts versions as strverscmp-like comparisons do: numbers by value."""
    key = []
    for part in _DIGITS.findall(text):
        if part.isdecimal():
            key.append((3, int(part[:18]), ""))
        elif part.isalpha():
            key.append((1, 0, part))
        else:
            # "~" is before everything: release candidates.
            key.append((-1 if part == "~" else 0, 0, part))
    return (*key, (0, 0, ""))


def default_entry(volume: Volume, found: list[BootEntry]) -> BootEntry | None:
    """Return the entry that systemd-boot's loader.conf calls the default; else the first."""
    try:
        fields = _fields(read_text(volume, "/loader/loader.conf"))
    except (NotFoundError, FileSystemError):
        fields = {}
    pattern = fields.get("default", [""])[0].lower().removesuffix(".conf").removesuffix(".efi")
    if pattern and not pattern.startswith("@"):
        for entry in found:
            if fnmatch.fnmatchcase(entry.id.lower().removesuffix(".efi"), pattern):
                return entry
    return found[0] if found else None
