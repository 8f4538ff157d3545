"""Where COPY takes files from: the build's directory, or the tree of another image.

Paths are relative to the top, and nothing leads out of it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from ringzero.build.entries import Entry, file_content
from ringzero.build.ignore import NAMES, Ignore, pattern
from ringzero.build.view import View
from ringzero.errors import InvalidValueError, MissingFileError
from ringzero.host.files import host_error
from ringzero.image.layers.tree import Node

_MAGIC = re.compile(r"[*?\[\\]")


class Origin(Protocol):
    """A tree of files, by paths without a leading slash; "" is its top."""

    def names(self, directory: bytes) -> list[bytes] | None:
        """Return what is in a directory, sorted; None where it is none."""
        ...

    def entry(self, path: bytes, *, follow: bool) -> Entry | None:
        """Return the file at `path`, without a name; None where there is none.

        With `follow` a link is what it leads to. Raises InvalidValueError for what leads out.
        """
        ...


def matches(origin: Origin, text: str) -> list[bytes]:
    """Return the paths that a pattern stands for, sorted; those without magic need not exist."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidValueError(f"{text!r} leads out of the build's directory")
    found = [b""]
    for part in parts:
        if not _MAGIC.search(part):
            found = [_join(path, os.fsencode(part)) for path in found]
            continue
        expression = re.compile(os.fsencode(pattern(part)), re.DOTALL)
        found = [
            _join(path, name)
            for path in found
            for name in origin.names(path) or []
            if expression.fullmatch(name)
        ]
    return [path for path in found if origin.entry(path, follow=True) is not None]


def walk(origin: Origin, path: bytes) -> Iterator[Entry]:
    """Yield what is at `path` and below it; names are relative to it, b"" its own.

    A link at `path` itself is followed, those below are links.
    """
    top = origin.entry(path, follow=True)
    if top is None:
        return
    yield top
    todo = [b""] if stat.S_ISDIR(top.mode) else []
    while todo:
        inside = todo.pop()
        for name in origin.names(_join(path, inside)) or []:
            relative = _join(inside, name)
            found = origin.entry(_join(path, relative), follow=False)
            if found is None:
                continue
            found.name = relative
            yield found
            if stat.S_ISDIR(found.mode):
                todo.append(relative)


class Context:
    """The build's directory, without what its ignore file leaves out. Raises MissingFileError."""

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise MissingFileError(f"there is no directory {directory}", path=directory)
        self.directory = directory.resolve()
        self._ignore = Ignore()
        for name in NAMES:
            try:
                text = (self.directory / name).read_text("utf-8", "surrogateescape")
            except FileNotFoundError:
                continue
            except OSError as fault:
                raise host_error(fault, "read", self.directory / name) from fault
            self._ignore = Ignore(text.splitlines())
            break

    def names(self, directory: bytes) -> list[bytes] | None:
        place = self._place(directory)
        if place is None or not place.is_dir():
            return None
        try:
            found = sorted(os.fsencode(path.name) for path in place.iterdir())
        except OSError as fault:
            raise host_error(fault, "read", place) from fault
        return [name for name in found if self._is_in(_join(directory, name), place)]

    def entry(self, path: bytes, *, follow: bool) -> Entry | None:
        place = self._place(path, follow=follow)
        if place is None or (path and not self._is_in(path, place.parent)):
            return None
        try:
            info = place.stat() if follow else place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as fault:
            raise host_error(fault, "read", place) from fault
        mode, link = info.st_mode, b""
        if stat.S_ISLNK(mode):
            link = os.fsencode(place.readlink())
        elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            # Sockets and the like are no part of an image.
            return None
        size = info.st_size if stat.S_ISREG(mode) else 0
        return Entry(b"", mode, link=link, size=size, content=file_content(place))

    def _is_in(self, path: bytes, parent: Path) -> bool:
        """Whether `path` belongs; a directory that is left out may hold some that do."""
        text = os.fsdecode(path)
        if not self._ignore.leaves_out(text):
            return True
        return self._ignore.takes_back and (parent / Path(text).name).is_dir()

    def _place(self, path: bytes, *, follow: bool = True) -> Path | None:
        """Return where a path lies on the host; None for what the links lead nowhere.

        Raises InvalidValueError for a path whose links lead out of the directory.
        """
        text = os.fsdecode(path)
        place = self.directory / text
        real = place if not text else (place if follow else place.parent).resolve()
        if real != self.directory and self.directory not in real.parents:
            raise InvalidValueError(
                f"{text!r} leads out of the build's directory, to {real}",
                hint="copy what is needed into the directory",
            )
        return real if follow or not text else real / place.name


class Image:
    """The tree of another image or stage."""

    def __init__(self, view: View) -> None:
        self._view = view

    def names(self, directory: bytes) -> list[bytes] | None:
        node = self._view.find(directory)
        return sorted(node.children) if node is not None and node.children is not None else None

    def entry(self, path: bytes, *, follow: bool) -> Entry | None:
        if follow or not path:
            return self._entry(self._view.find(path))
        parent, _, name = path.rpartition(b"/")
        directory = self._view.find(parent)
        children = directory.children if directory is not None else None
        return self._entry((children or {}).get(name))

    def _entry(self, node: Node | None) -> Entry | None:
        if node is None:
            return None
        return Entry(
            b"",
            node.mode,
            link=node.target,
            device=node.device,
            xattrs=dict(node.xattrs),
            size=node.size if stat.S_ISREG(node.mode) else 0,
            content=lambda: self._view.content(node),
        )


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory and name else directory or name
