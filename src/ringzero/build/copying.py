"""COPY and ADD: which files a layer gets, and where (Dockerfile reference, "COPY")."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ringzero.build import archives, entries
from ringzero.build.entries import Entry
from ringzero.build.ignore import pattern
from ringzero.build.origin import Origin, matches, walk
from ringzero.build.view import View
from ringzero.errors import InvalidValueError, MissingFileError
from ringzero.image.oci.process import find_user
from ringzero.records import record, replace

_DIRECTORY = stat.S_IFDIR | 0o755


@record
class Placement:
    """Where files go, and whose they are; `mode` None keeps each one's own.

    `target` is absolute; one that ends with a slash is a directory. `owner` None is the
    archive's of what `unpack` unpacks, else root.
    """

    target: str
    owner: tuple[int, int] | None = None
    mode: int | None = None
    unpack: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()


def owner_of(text: str, view: View) -> tuple[int, int]:
    """Return the numbers that USER[:GROUP] means in an image. Raises GuestImageError."""
    user = find_user(text, view.read)
    name, colon, group = text.partition(":")
    # A user by number alone is a group by the same number.
    if name.isdecimal() and not (colon and group):
        return user.uid, user.uid
    return user.uid, user.gids[0]


def mode_of(text: str) -> int:
    """Return the mode that `--chmod` says. Raises InvalidValueError."""
    if not re.fullmatch("[0-7]{1,4}", text):
        raise InvalidValueError(f"--chmod {text!r} is no octal mode", hint="--chmod=0755")
    return int(text, 8)


def plan(
    origin: Origin,
    sources: Sequence[str],
    given: Mapping[str, Entry],
    placement: Placement,
    view: View,
) -> list[Entry]:
    """Return what the layer of a COPY holds.

    `given` are files that do not come from `origin`, by source, with their own names:
    here-documents, and what addresses led to.

    Raises MissingFileError, InvalidValueError, GuestImageError.
    """
    found: list[tuple[str, bytes | None]] = []
    for source in sources:
        if source in given:
            found.append((source, None))
            continue
        paths = matches(origin, source)
        if not paths:
            raise MissingFileError(
                f"there is no {source!r} to copy",
                hint="paths are relative to the build's directory; is it in .vmignore?",
            )
        found += [(source, path) for path in paths]
    _, there = view.resolve(os.fsencode(placement.target))
    into = (
        placement.target.endswith("/")
        or len(found) > 1
        or placement.parents
        or (there is not None and stat.S_ISDIR(there.mode))
    )
    layer = _Layer(view, placement)
    for source, path in found:
        if path is None:
            entry = given[source]
            members = archives.unpacked(entry) if placement.unpack else None
            if members is not None:
                layer.unpack(placement.target, members)
                continue
            own = os.fsdecode(entry.name)
            name = posixpath.join(placement.target, own) if into else placement.target
            layer.add(name, entry)
            continue
        top = placement.target
        if placement.parents:
            top = posixpath.join(top, os.fsdecode(path))
        for entry in walk(origin, path):
            if _left_out(entry.name or path, placement.exclude):
                continue
            members = archives.unpacked(entry) if placement.unpack and not entry.name else None
            if members is not None:
                layer.unpack(top, members)
            elif entry.name:
                layer.add(posixpath.join(top, os.fsdecode(entry.name)), entry)
            elif stat.S_ISDIR(entry.mode):
                layer.directory(top)
            else:
                at = into and not placement.parents
                name = posixpath.basename(os.fsdecode(path))
                layer.add(posixpath.join(top, name) if at else top, entry)
    return list(layer.entries.values())


def contents(
    origin: Origin,
    sources: Sequence[str],
    given: Mapping[str, Entry],
    placement: Placement,
    epoch: int,
) -> list[str]:
    """Return a digest of what each source holds: names, modes and bytes.

    What `plan` makes of them depends on nothing else but the placement and the view. Raises as it
    does.
    """
    # Into a directory: the files' own names count.
    where = replace(placement, target=placement.target.rstrip("/") + "/", owner=None)
    found = []
    with Path(os.devnull).open("wb") as nowhere:
        for source in sources:
            files = plan(origin, [source], given, where, View(None))
            found.append(entries.write(files, nowhere, epoch).digest)
    return found


def directories(path: str, view: View) -> list[Entry]:
    """Return what makes a directory, and those above it. Raises InvalidValueError."""
    layer = _Layer(view, Placement(path))
    layer.directory(path)
    return list(layer.entries.values())


class _Layer:
    """Entries by their real names; directories that are missing come along."""

    def __init__(self, view: View, placement: Placement) -> None:
        self.entries: dict[bytes, Entry] = {}
        self._view = view
        self._placement = placement

    def add(self, path: str, entry: Entry) -> bytes:
        parent, _, name = path.rstrip("/").rpartition("/")
        if not name:
            raise InvalidValueError("a file cannot become the root directory")
        if stat.S_ISDIR(entry.mode):
            return self.directory(path, entry)
        directory = self.directory(parent)
        real = directory + b"/" + os.fsencode(name) if directory else os.fsencode(name)
        node = self._view.resolve(real)[1]
        if node is not None and stat.S_ISDIR(node.mode):
            raise InvalidValueError(
                f"{path} is a directory of the image, and shall be a file",
                hint="a target that ends with / is a directory",
            )
        self.entries[real] = self._own(replace(entry, name=real))
        return real

    def unpack(self, top: str, members: Sequence[Entry]) -> None:
        """Put what an archive holds into a directory; hard links lead to its own files."""
        self.directory(top)
        for member in members:
            owner, mtime = (member.uid, member.gid), member.mtime
            path = posixpath.join(top, os.fsdecode(member.name))
            if stat.S_ISDIR(member.mode):
                real = self.directory(path, member)
            else:
                if not member.mode:
                    member.link = self._view.resolve(
                        os.fsencode(posixpath.join(top, os.fsdecode(member.link)))
                    )[0]
                real = self.add(path, member)
            if self._placement.owner is None and (made := self.entries.get(real)) is not None:
                made.uid, made.gid = owner
                made.mtime = mtime

    def directory(self, path: str, entry: Entry | None = None) -> bytes:
        """Have a directory, made where it is missing; return its real name."""
        real, node = self._view.resolve(os.fsencode(path))
        if not real or real in self.entries:
            return real
        if node is not None:
            if not stat.S_ISDIR(node.mode):
                raise InvalidValueError(f"{path} is a file of the image, and no directory")
            return real
        parent = os.fsdecode(real.rpartition(b"/")[0])
        if parent:
            self.directory(parent)
        self.entries[real] = self._own(Entry(real, entry.mode if entry else _DIRECTORY))
        return real

    def _own(self, entry: Entry) -> Entry:
        entry.uid, entry.gid = self._placement.owner or (0, 0)
        mode = self._placement.mode
        if mode is not None and entry.mode and not stat.S_ISLNK(entry.mode):
            entry.mode = stat.S_IFMT(entry.mode) | mode
        return entry


def document(name: str, data: bytes) -> Entry:
    """Return a here-document as a file."""

    def content() -> Iterator[bytes]:
        yield data

    return Entry(os.fsencode(name), stat.S_IFREG | 0o644, size=len(data), content=content)


def _left_out(path: bytes, exclude: tuple[str, ...]) -> bool:
    text = os.fsdecode(path)
    return any(re.fullmatch(pattern(p) + "(?:/.*)?", text, re.DOTALL) for p in exclude)
