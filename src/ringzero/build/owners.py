"""Whose the files of a layer are: a package's, a directory's, or everybody's.

What belongs to one owner is changed together, by an update of it. Packages are told by the
databases that their managers have in the layer itself: dpkg's lists of files (dpkg(1), "FILES")
and apk's database of what is installed. What installers of languages put into a folder of
packages belongs to the package that the folder is named for. All else belongs to its directory.
Databases are the guest's, and not trusted: a path in one only ever names an owner.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from ringzero.build.entries import Entry

# What every change of packages changes: databases, lists, caches, logs.
SHARED = b""
_DPKG, _LIST = b"var/lib/dpkg/info/", b".list"
_APK = (b"lib/apk/db/installed", b"usr/lib/apk/db/installed")
_SHARED_PLACES = (
    *(b"var/lib/dpkg/", b"var/lib/apt/", b"lib/apk/", b"usr/lib/apk/", b"etc/apk/"),
    *(b"var/lib/rpm/", b"usr/lib/sysimage/", b"var/lib/dnf/"),
    *(b"var/cache/", b"var/log/", b"etc/ld.so.cache"),
)
# Directories that are links into usr in distributions of this decade; dpkg's lists have both.
_MERGED = (b"bin/", b"sbin/", b"lib/", b"lib32/", b"lib64/", b"libx32/")
# Folders with a package in each entry: Python's, node's, Ruby's, PHP's.
_FOLDERS = frozenset((b"site-packages", b"dist-packages", b"node_modules", b"gems", b"vendor"))
# What Python's installers write beside a package: NAME-VERSION.dist-info.
_NOTES = re.compile(rb"-[^-/]+(-[^/]*)?\.(dist|egg)-info$|\.py$")
# Directories are owners as far down as this; deeper ones belong to those.
_DEPTH = 4
# Those of all Debian's packages together have less.
_MAX_DATABASE = 64 << 20


class Owners:
    """The owners of the files among `entries`, a layer's."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._of: dict[bytes, bytes] = {}
        self._packages = set[bytes]()
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(_DPKG) and entry.name.endswith(_LIST):
                owner = b"deb:" + _stem(entry.name)
                self._packages.add(owner)
                for path in _lines(entry):
                    self._add(path, owner)
            elif entry.name in _APK:
                self._read_apk(entry)

    def of(self, name: bytes) -> bytes:
        """Return a file's owner: KIND:PACKAGE, a directory as /PATH, or SHARED."""
        owner = self._of.get(name)
        if owner is None and name.startswith(_DPKG):
            owner = b"deb:" + _stem(name)
            owner = owner if owner in self._packages else None
        if owner is not None:
            return owner
        if name.startswith(_SHARED_PLACES):
            return SHARED
        return b"/" + _place(name)

    def _add(self, path: bytes, owner: bytes) -> None:
        name = path.strip(b"/")
        self._of.setdefault(name, owner)
        if name.startswith(_MERGED):
            self._of.setdefault(b"usr/" + name, owner)

    def _read_apk(self, entry: Entry) -> None:
        """Take apk's database: P:PACKAGE, F:DIRECTORY and R:FILE, a line each, in this order."""
        owner = directory = b""
        for line in _lines(entry):
            kind, _, value = line.partition(b":")
            if kind == b"P":
                owner, directory = b"apk:" + value, b""
            elif kind == b"F":
                directory = value + b"/" if value else b""
            elif kind == b"R" and owner:
                self._add(directory + value, owner)


def _stem(name: bytes) -> bytes:
    """Return the package that a file of dpkg's is of: NAME[:ARCHITECTURE]."""
    return name.removeprefix(_DPKG).rpartition(b".")[0]


def _lines(entry: Entry) -> Iterator[bytes]:
    if entry.content is not None and entry.size <= _MAX_DATABASE:
        yield from b"".join(entry.content()).split(b"\n")


def _place(name: bytes) -> bytes:
    """Return the directory that a file belongs to, or the package of a language's installer."""
    parts = name.split(b"/")
    for at, part in enumerate(parts[:-1]):
        if part in _FOLDERS:
            # npm's scopes hold packages: @SCOPE/NAME.
            end = at + 2 + parts[at + 1].startswith(b"@")
            return _NOTES.sub(b"", b"/".join(parts[:end])).lower()
    return b"/".join(parts[:-1][:_DEPTH])
