"""What a file system in an image is: files by path, read-only, from hostile bytes.

    fs = open_file_system(Part(disk, partition.start, partition.size))
    fs.read_file("/boot/grub/grub.cfg", limit=1 << 20)

A kind of file system is a module of `ringzero.image.fs.kinds`. It says where a node's bytes lie
and what a directory lists; paths, symbolic links and limits are done here, once. No byte is
trusted: whatever a kind follows (extents, trees, chains) has a bound, and what breaks the format
raises FileSystemError, never anything else.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

from ringzero.errors import FileSystemError, NotFoundError
from ringzero.image.source import Part, Source
from ringzero.records import record
from ringzero.registry import Registry
from ringzero.units import MIB, format_size

# As Linux (fs/namei.c, MAXSYMLINKS).
_MAX_LINKS = 40
# PATH_MAX of Linux: no link has a longer target.
_MAX_TARGET = 4096
# Entries of one directory, and extents of one file, that are looked at. Far above what a
# directory that boots has; it bounds the time that hostile bytes cost.
MAX_ENTRIES = 200_000
MAX_EXTENTS = 200_000
# Bytes of one directory that are looked at: MAX_ENTRIES of them with the longest names.
MAX_DIRECTORY = 64 * MIB
# Bytes read from the source at once.
_CHUNK = 4 * MIB


@record
class Node:
    """A file, directory or link. `mode` is as in stat(2), `key` what its file system finds it by.

    `detail` is the file system's own.
    """

    key: Any
    mode: int
    size: int
    detail: Any = None

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


@record
class Attributes:
    """What a file system knows of a node besides its content; `mtime` in seconds since 1970.

    `device` is (major, minor) of a device's node.
    """

    uid: int
    gid: int
    mtime: int
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] | None = None


class Extent(NamedTuple):
    """Bytes `offset` to `offset + length` of a file lie at `start` of the source; None: zeros."""

    offset: int
    length: int
    start: int | None

    @property
    def end(self) -> int | None:
        """Where the bytes end in the source."""
        return None if self.start is None else self.start + self.length


class _Listing:
    """What a directory lists: read once, and as far only as somebody has asked."""

    def __init__(
        self, entries: Iterator[tuple[bytes, Any]], folded: Callable[[bytes], bytes]
    ) -> None:
        self._rest, self._folded = entries, folded
        self._found: list[tuple[bytes, Any]] = []
        self._keys: dict[bytes, Any] = {}
        self._fault: FileSystemError | None = None

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[tuple[bytes, Any]]:
        at = 0
        while at < len(self._found) or self._more():
            yield self._found[at]
            at += 1

    def find(self, name: bytes) -> Any:
        """Return the key of the first entry with a name; None where there is none."""
        wanted = self._folded(name)
        while wanted not in self._keys:
            if not self._more():
                return None
        return self._keys[wanted]

    def _more(self) -> bool:
        """Read one entry more; False at the end. Raises FileSystemError, each time."""
        if self._fault is not None:
            raise self._fault
        try:
            entry = next(self._rest, None)
        except FileSystemError as fault:
            self._fault = fault
            raise
        if entry is None:
            return False
        self._found.append(entry)
        self._keys.setdefault(self._folded(entry[0]), entry[1])
        return True


class FileSystem(ABC):
    """One file system. `label` and `uuid` are spelled as blkid(8) does; "" where there is none.

    `warnings` tell what a reader should know, as of a journal that was not replayed.
    """

    name: ClassVar[str]
    label: str = ""
    uuid: str = ""

    def __init__(self, source: Part) -> None:
        self.source = source
        self.warnings: list[str] = []
        # By the keys of directories: a path's are read again for the next one.
        self._listings: dict[Any, _Listing] = {}

    @classmethod
    @abstractmethod
    def probe(cls, source: Part) -> bool:
        """Tell whether the bytes look like this kind of file system."""

    # ---- what a kind gives ------------------------------------------------

    @abstractmethod
    def root(self) -> Node:
        """Return the root directory."""

    @abstractmethod
    def entries(self, directory: Node) -> Iterator[tuple[bytes, Any]]:
        """Yield (name, key) of a directory, with or without "." and "..", in any order."""

    @abstractmethod
    def node(self, key: Any) -> Node:
        """Return the node of a key that `entries` gave."""

    @abstractmethod
    def content(self, node: Node, offset: int, length: int) -> bytes:
        """Return `length` bytes of a file or link, which has them."""

    def attributes_of(self, node: Node) -> Attributes:
        """Return a node's owner, time, device and extended attributes."""
        raise FileSystemError(
            f"owners and attributes of files are not read from {self.name} ({self.source.name})",
            hint="ext4, XFS, btrfs and EROFS are read with them",
        )

    def folded(self, name: bytes) -> bytes:
        """Return what is the same for all names that are one to this file system."""
        return name

    # ---- what users call --------------------------------------------------

    def stat(self, path: str) -> Node:
        """Return the node at `path`, through symbolic links. Raises NotFoundError."""
        return self._walk(path)

    def exists(self, path: str) -> bool:
        """Tell whether there is something at `path`."""
        try:
            self.stat(path)
        except NotFoundError:
            return False
        return True

    def listing(self, path: str) -> list[str]:
        """Return the names in the directory at `path`, sorted. Raises NotFoundError."""
        return sorted(os.fsdecode(name) for name in self.children(self._directory(path)))

    def children(self, directory: Node) -> dict[bytes, Any]:
        """Return the keys of what is in a directory by name, without "." and ".."."""
        return {
            name: key
            for name, key in self._listing(directory)
            if name not in (b".", b"..", b"") and b"/" not in name
        }

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of the file at `path`, up to its end. Raises NotFoundError."""
        node = self._file(path)
        end = node.size if length is None else min(node.size, offset + length)
        return self._content(node, offset, max(0, end - offset))

    def read_file(self, path: str, *, limit: int) -> bytes:
        """Return the file at `path`; FileSystemError when it is longer than `limit` bytes."""
        node = self._file(path)
        if node.size > limit:
            raise FileSystemError(
                f"{path} in {self.source.name} is {format_size(node.size)} long, "
                f"more than the {format_size(limit)} that such a file may have"
            )
        return self._content(node, 0, node.size)

    def attributes(self, node: Node) -> Attributes:
        """Return a node's owner, time, device and extended attributes. Raises FileSystemError."""
        with guarded(self.name, self.source):
            return self.attributes_of(node)

    def readlink(self, path: str) -> str:
        """Return the target of the link at `path`. Raises NotFoundError."""
        node = self._walk(path, follow=False)
        if not node.is_link:
            raise FileSystemError(f"{path} in {self.source.name} is no symbolic link")
        return os.fsdecode(self._target(node))

    def walk(self, top: str = "/") -> Iterator[tuple[str, Node]]:
        """Yield (path, node) of everything below `top`, parents first; links are not followed."""
        waiting = [(top.rstrip("/"), self._directory(top))]
        # A directory of a damaged file system may contain itself.
        seen = set[Any]()
        while waiting:
            above, directory = waiting.pop()
            for name, key in sorted(self.children(directory).items()):
                node = self._node(key)
                path = f"{above}/{os.fsdecode(name)}"
                yield path, node
                if node.is_directory and node.key not in seen:
                    seen.add(node.key)
                    waiting.append((path, node))

    def damaged(self, what: str, **context: object) -> FileSystemError:
        """Return the error for bytes that break the format."""
        return FileSystemError(
            f"the {self.name} file system in {self.source.name} is damaged: {what}",
            hint="let the guest's own fsck repair it",
            **context,
        )

    # ---- paths ------------------------------------------------------------

    def _directory(self, path: str) -> Node:
        node = self._walk(path)
        if not node.is_directory:
            raise NotFoundError(f"{path} in {self.source.name} is no directory")
        return node

    def _file(self, path: str) -> Node:
        node = self._walk(path)
        if not node.is_file:
            raise NotFoundError(f"{path} in {self.source.name} is no file")
        return node

    def _walk(self, path: str, *, follow: bool = True, top: Node | None = None) -> Node:
        """Return the node at `path`; ".." ends at `top`, the root, and so do absolute links."""
        with guarded(self.name, self.source):
            above = [top or self.root()]
        parts = _parts(os.fsencode(path))
        links = 0
        while parts:
            part = parts.pop()
            if part == b"..":
                del above[max(1, len(above) - 1) :]
                continue
            if not above[-1].is_directory:
                raise self._missing(path)
            node = self._child(above[-1], part)
            if node is None:
                raise self._missing(path)
            if node.is_link and (parts or follow):
                links += 1
                if links > _MAX_LINKS:
                    raise NotFoundError(
                        f"{path} in {self.source.name}: too many levels of symbolic links"
                    )
                target = self._target(node)
                if target.startswith(b"/"):
                    del above[1:]
                parts += _parts(target)
            else:
                above.append(node)
        return above[-1]

    def _child(self, directory: Node, name: bytes) -> Node | None:
        key = self._listing(directory).find(name)
        return None if key is None else self._node(key)

    def _listing(self, directory: Node) -> _Listing:
        known = self._listings.get(directory.key)
        if known is None:
            if sum(map(len, self._listings.values())) > MAX_ENTRIES:
                self._listings.clear()
            known = _Listing(self._read_entries(directory), self.folded)
            self._listings[directory.key] = known
        return known

    def _read_entries(self, directory: Node) -> Iterator[tuple[bytes, Any]]:
        with guarded(self.name, self.source):
            for count, entry in enumerate(self.entries(directory)):
                if count > MAX_ENTRIES:
                    raise self.damaged(f"a directory has more than {MAX_ENTRIES} entries")
                yield entry

    def _node(self, key: Any) -> Node:
        with guarded(self.name, self.source):
            return self.node(key)

    def _content(self, node: Node, offset: int, length: int) -> bytes:
        with guarded(self.name, self.source):
            return self.content(node, offset, length)

    def _target(self, node: Node) -> bytes:
        if node.size > _MAX_TARGET:
            raise self.damaged(f"a symbolic link of {node.size} bytes")
        return self._content(node, 0, node.size)

    def _missing(self, path: str) -> NotFoundError:
        return NotFoundError(f"there is no {path} in {self.source.name}")


class ExtentFileSystem(FileSystem):
    """A file system whose files lie in extents, as they are."""

    @abstractmethod
    def extents(self, node: Node) -> list[Extent]:
        """Return where a node's bytes lie, in order; what no extent covers reads as zeros."""

    def content(self, node: Node, offset: int, length: int) -> bytes:
        return self.gather(self.extents(node), offset, length)

    def blocks(self, directory: Node, size: int, end: int) -> Iterator[bytes]:
        """Yield the blocks of `size` bytes of a directory that lie in its extents, up to `end`.

        What no extent covers is passed over, however much that is.
        """
        held: dict[int, list[Extent]] = {}
        count = 0
        for extent in self.extents(directory):
            if extent.start is None:
                continue
            last = min(extent.offset + extent.length, end)
            for at in range(extent.offset - extent.offset % size, last, size):
                count += 1
                if count * size > MAX_DIRECTORY:
                    raise self.damaged(f"a directory of more than {format_size(MAX_DIRECTORY)}")
                held.setdefault(at, []).append(extent)
        for at in sorted(held):
            yield self.gather(held[at], at, size)

    def gather(self, extents: list[Extent], offset: int, length: int) -> bytes:
        """Return the bytes from `offset` on of what lies in `extents`."""
        data = bytearray(length)
        end = offset + length
        for extent in extents:
            first, last = max(offset, extent.offset), min(end, extent.offset + extent.length)
            if extent.start is None or first >= last:
                continue
            for at in range(first, last, _CHUNK):
                count = min(_CHUNK, last - at)
                read = self.source.read(extent.start + at - extent.offset, count)
                data[at - offset : at - offset + count] = read
        return bytes(data)


FILE_SYSTEMS: Registry[type[FileSystem]] = Registry("file system", "ringzero.image.fs.kinds")


def open_file_system(source: Part) -> FileSystem | None:
    """Return the file system in `source`; None where it is none that is known.

    Raises FileSystemError when it is damaged, or has a feature that is not read.
    """
    for _, kind in FILE_SYSTEMS:
        if kind.probe(source):
            with guarded(kind.name, source):
                return kind(source)
    return None


@contextlib.contextmanager
def guarded(name: str, source: Part) -> Iterator[None]:
    """Turn what wrong bytes make structures and lists raise into FileSystemError."""
    try:
        yield
    except (struct.error, IndexError, ValueError, OverflowError, EOFError) as fault:
        raise FileSystemError(
            f"the {name} file system in {source.name} is damaged ({fault})",
            hint="let the guest's own fsck repair it",
        ) from fault


def peek(source: Source, offset: int, length: int) -> bytes:
    """Return `length` bytes from `offset`, or b"" where the source is shorter."""
    return source.read(offset, length) if offset + length <= source.size else b""


def uuid_text(data: bytes) -> str:
    """Return 16 bytes in the usual spelling of a UUID."""
    text = data.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _parts(path: bytes) -> list[bytes]:
    """Return the names in a path, the last one first."""
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]
