"""What an image holds after some steps: its base's tree, and the layers above it.

Names are looked up as the guest would, links followed inside the tree.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ringzero.errors import GuestImageError
from ringzero.image.fs.contract import FileSystem
from ringzero.image.fs.contract import Node as Found
from ringzero.image.layers import tar
from ringzero.image.layers.plain import map_whole
from ringzero.image.layers.tree import Node, Tree
from ringzero.image.oci.files import open_root

# Files of one image: each takes some hundred bytes here.
_MAX_FILES = 4_000_000
_MAX_LINKS = 40
_PIECE = 1 << 20
# Where the base's own files are, among the layers' numbers.
_BASE = -1


class View:
    """A tree of files with their content; close it."""

    def __init__(self, base: Path | None, layers: Sequence[Path] = ()) -> None:
        self._tree = Tree(_MAX_FILES)
        self._maps: list[memoryview] = []
        self._closing = contextlib.ExitStack()
        self._system: FileSystem | None = None
        self._places: list[object] = []
        # Of the base, by their inodes: hard links are one node.
        self._known: dict[object, Node] = {}
        if base is not None:
            self._take_base(base)
        for layer in layers:
            self.apply(layer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all files."""
        self._maps.clear()
        self._closing.close()

    @property
    def root(self) -> Node:
        """The root directory."""
        return self._tree.root

    def apply(self, layer: Path) -> None:
        """Put a layer on top. Raises GuestImageError."""
        with layer.open("rb") as file:
            archive = map_whole(file.fileno())
        self._tree.apply(tar.read(archive), len(self._maps))
        self._maps.append(archive)

    def find(self, path: bytes) -> Node | None:
        """Return what is at `path`, links followed, or None. Raises GuestImageError."""
        return self._tree.find(path)

    def resolve(self, path: bytes) -> tuple[bytes, Node | None]:
        """Return `path` without links, relative to the root, and what is there.

        The parts that do not exist stay as they are. Raises GuestImageError for links without
        an end.
        """
        here: list[tuple[bytes, Node | None]] = []
        todo = [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]
        links = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if here:
                    here.pop()
                continue
            parent = here[-1][1] if here else self.root
            node = (parent.children or {}).get(part) if parent is not None else None
            if node is not None and stat.S_ISLNK(node.mode):
                links += 1
                if links > _MAX_LINKS:
                    raise GuestImageError(f"symbolic links without an end at {os.fsdecode(path)}")
                if node.target.startswith(b"/"):
                    here = []
                todo += reversed(node.target.split(b"/"))
                continue
            here.append((part, node))
        return b"/".join(part for part, _ in here), here[-1][1] if here else self.root

    def content(self, node: Node) -> Iterator[bytes]:
        """Yield a regular file's bytes. Raises FileSystemError, GuestImageError."""
        for offset in range(0, node.size, _PIECE):
            length = min(_PIECE, node.size - offset)
            if node.layer == _BASE:
                assert self._system is not None
                place = self._system.node(self._places[node.offset])
                yield self._system.content(place, offset, length)
            else:
                start = node.offset + offset
                yield bytes(self._maps[node.layer][start : start + length])

    def read(self, path: str, limit: int = _PIECE) -> bytes:
        """Return a file's beginning; b"" where there is none."""
        node = self.find(os.fsencode(path))
        if node is None or not stat.S_ISREG(node.mode):
            return b""
        return b"".join(self.content(node))[:limit] if node.size <= limit else b""

    def _take_base(self, path: Path) -> None:
        """Take over the tree below /rootfs of an image's root file system, without owners."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            system = self._system = self._closing.enter_context(open_root(path))
            top = system.stat("/rootfs")
            self.root.mode = top.mode
            self.root.children = self._listed(top)
            stack.pop_all()

    def _listed(self, directory: Found) -> dict[bytes, Node]:
        """Return what is in a directory of the base; of its directories nothing is read yet."""
        system = self._system
        assert system is not None
        children: dict[bytes, Node] = {}
        for name, key in system.children(directory).items():
            if key in self._known:
                children[name] = self._known[key]
                continue
            child = system.node(key)
            if stat.S_ISDIR(child.mode):
                children[name] = _Unread(child.mode, partial(self._listed, child))
                continue
            node = children[name] = self._known[key] = Node(child.mode)
            node.size, node.xattrs = child.size, system.attributes(child).xattrs or {}
            node.layer, node.offset = _BASE, len(self._places)
            self._places.append(key)
            if stat.S_ISLNK(child.mode):
                node.target = system.content(child, 0, child.size)
        return children


class _Unread(Node):
    """A directory of the base: what is in it is read when somebody first asks."""

    __slots__ = ("_read",)

    def __init__(self, mode: int, read: Callable[[], dict[bytes, Node]]) -> None:
        self._read: Callable[[], dict[bytes, Node]] | None = None
        super().__init__(mode)
        self._read = read

    @property
    def children(self) -> dict[bytes, Node] | None:
        if self._read is not None:
            read, self._read = self._read, None
            _CHILDREN.__set__(self, read())
        found: dict[bytes, Node] | None = _CHILDREN.__get__(self)
        return found

    @children.setter
    def children(self, found: dict[bytes, Node] | None) -> None:
        self._read = None
        _CHILDREN.__set__(self, found)


# Where every node keeps them.
_CHILDREN: Any = vars(Node)["children"]
