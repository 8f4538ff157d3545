"""Writing a whole ext4 file system at once, from a tree in memory, without root and mounts.

Blocks are given out from the beginning on, group after group: those of directories and files in the
tree's order, each in as few pieces as the groups' own structures leave. It has an empty journal,
and lost+found. Equal trees make equal bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

from ringzero.errors import GuestImageError, InvalidValueError
from ringzero.image.ext4 import structures as ext4
from ringzero.image.ext4.structures import (
    BLOCK,
    FIRST_INODE,
    INODE_SIZE,
    JOURNAL_INODE,
    PER_GROUP,
    ROOT_INODE,
    Inode,
    Run,
    Shape,
)
from ringzero.image.layers.tree import Node
from ringzero.records import mutable_record
from ringzero.units import GIB, MIB, TIB, format_size

# What `mke2fs` gives a file system of this size, in blocks, up to 128 MiB.
_JOURNALS = ((128 * MIB, 1024), (1 * GIB, 4096), (4 * GIB, 8192))
_MOST_JOURNAL = 16384
# One inode for so many bytes, as mke2fs has it.
_BYTES_PER_INODE = 16384
# Blocks are told by 32 bits.
_MAX_SIZE = 16 * TIB - BLOCK
# The smallest last group that is worth its structures, in blocks of content.
_LEAST_GROUP = 64
_LOST, _LOST_BLOCKS = b"lost+found", 4
_NO_FILE_NODES = 4  # extents in i_block, each a block that lists others

Content = Callable[[Node], Iterable[bytes]]


@mutable_record
class _File:
    """A file on its way: its inode's number, that of its directory, and how it is called."""

    node: Node
    number: int
    parent: int
    name: bytes
    links: int = 1


def least_size(root: Node) -> int:
    """Return how many bytes a file system needs at least that holds a tree, nearly nothing free."""
    files = _numbered(root)
    blocks = sum(_blocks_of(file, {}) for file in files) + len(files) // 16 + 1
    # With what each group takes for itself, and the journal that a file system so large has.
    blocks += blocks // 16 + 256 + _LOST_BLOCKS
    journals = (*(journal for _, journal in _JOURNALS), _MOST_JOURNAL)
    sizes = ((blocks + journal + journal // 16) * BLOCK for journal in journals)
    return next(
        size for size, journal in zip(sizes, journals, strict=True) if _journal(size) <= journal
    )


def write(
    root: Node, size: int, file: BinaryIO, *, at: int, uuid: bytes, label: str, content: Content
) -> None:
    """Write a file system of `size` bytes with a tree at the offset `at` of a file.

    What is not written there must read as zeros. `content` yields the bytes of a regular file.
    Raises InvalidValueError where the tree does not fit, GuestImageError for what ext4 cannot
    hold, OSError.
    """
    _Writer(root, size, file.fileno(), at, content).run(uuid, label.encode())


def _numbered(root: Node) -> list[_File]:
    """Return all files with the numbers of their inodes, directories before what is in them."""
    found = [_File(root, ROOT_INODE, ROOT_INODE, b"/")]
    known: dict[int, _File] = {id(root): found[0]}
    if root.children is not None and _LOST not in root.children:
        root.children[_LOST] = Node(stat.S_IFDIR | 0o700)
    todo = [found[0]]
    number = FIRST_INODE
    while todo:
        above = todo.pop()
        assert above.node.children is not None
        folders = []
        for name, node in sorted(above.node.children.items()):
            if id(node) in known:
                known[id(node)].links += 1
                continue
            known[id(node)] = each = _File(node, number, above.number, name)
            number += 1
            found.append(each)
            if node.children is not None:
                above.links += 1
                each.links = 2
                folders.append(each)
        todo += reversed(folders)
    found[0].links += 1
    return found


def _blocks_of(file: _File, numbers: dict[int, int]) -> int:
    """Return how many blocks of content a file has."""
    node = file.node
    if node.children is not None:
        entries = [(name, numbers.get(id(n), 0), n.mode) for name, n in _entries(node)]
        least = _LOST_BLOCKS if file.name == _LOST and file.parent == ROOT_INODE else 1
        return len(ext4.directory(0, 0, entries, least)) // BLOCK
    if stat.S_ISLNK(node.mode):
        return int(len(node.target) >= ext4.FAST_LINK)
    return -(-node.size // BLOCK) if stat.S_ISREG(node.mode) else 0


def _entries(node: Node) -> Iterator[tuple[bytes, Node]]:
    yield from sorted((node.children or {}).items())


def _shape(size: int, files: int) -> Shape:
    """Return the shape of a file system of `size` bytes, for so many files."""
    if not MIB <= size <= _MAX_SIZE:
        raise InvalidValueError(f"an ext4 file system cannot have {format_size(size)}")
    blocks = size // BLOCK
    groups = -(-blocks // PER_GROUP)
    inodes = max(files + files // 4, size // _BYTES_PER_INODE) + FIRST_INODE
    per_block = BLOCK // INODE_SIZE
    per_group = min(-(-inodes // groups // per_block + 1) * per_block, PER_GROUP)
    journal = _journal(size)
    shape = Shape(blocks, per_group, journal)
    last = shape.groups - 1
    if last and shape.length(last) < shape.overhead(last) + _LEAST_GROUP:
        shape = Shape(last * PER_GROUP, per_group, journal)
    return shape


def _journal(size: int) -> int:
    """Return how many blocks the journal of a file system of `size` bytes has."""
    return next((blocks for most, blocks in _JOURNALS if size <= most), _MOST_JOURNAL)


class _Blocks:
    """Gives out the blocks of a file system, from the beginning on."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._group = 0
        self._used = shape.overhead(0)

    def take(self, count: int) -> list[Run]:
        """Return so many blocks, in as few runs as possible. Raises InvalidValueError."""
        runs = list[Run]()
        while count:
            if self._used >= self._shape.length(self._group):
                self._group += 1
                if self._group >= self._shape.groups:
                    raise InvalidValueError(
                        "the files do not fit into a file system of "
                        f"{format_size(self._shape.blocks * BLOCK)}",
                        hint="make the disk larger: --size SIZE",
                    )
                self._used = self._shape.overhead(self._group)
                continue
            left = self._shape.length(self._group) - self._used
            length = min(count, left, ext4.MAX_EXTENT)
            runs.append((self._group * PER_GROUP + self._used, length))
            self._used += length
            count -= length
        return runs

    def used(self, group: int) -> int:
        """Return how many blocks of a group are in use, all of them at its beginning."""
        if group < self._group:
            return self._shape.length(group)
        return self._used if group == self._group else self._shape.overhead(group)


class _Writer:
    """One file system on its way into a file."""

    def __init__(self, root: Node, size: int, descriptor: int, at: int, content: Content) -> None:
        self._files = _numbered(root)
        self._numbers = {id(file.node): file.number for file in self._files}
        self._shape = _shape(size, len(self._files))
        if self._files[-1].number > self._shape.inodes:
            raise InvalidValueError(
                f"{len(self._files)} files do not fit into {format_size(size)}",
                hint="make the disk larger: --size SIZE",
            )
        self._blocks = _Blocks(self._shape)
        self._descriptor, self._at, self._content = descriptor, at, content

    def run(self, uuid: bytes, label: bytes) -> None:
        """Write all of it."""
        runs = self._blocks.take(self._shape.journal)
        self._put(runs[0][0], ext4.journal_superblock(self._shape.journal, uuid))
        area, more = self._area(runs)
        about = Inode(stat.S_IFREG | 0o600, size=self._shape.journal * BLOCK)
        self._put_inode(JOURNAL_INODE, ext4.inode(about, self._shape.journal + more, area))
        folders = [0] * self._shape.groups
        for file in self._files:
            self._write_file(file)
            if file.node.children is not None:
                folders[(file.number - 1) // self._shape.inodes_per_group] += 1
        self._finish(uuid, label, area, folders)

    def _write_file(self, file: _File) -> None:
        node = file.node
        size, area, runs = 0, bytes(60), list[Run]()
        if node.children is not None:
            entries = [(name, self._numbers[id(n)], n.mode) for name, n in _entries(node)]
            least = _LOST_BLOCKS if file.name == _LOST and file.parent == ROOT_INODE else 1
            data = ext4.directory(file.number, file.parent, entries, least)
            size, runs = len(data), self._stored([data], len(data))
        elif stat.S_ISLNK(node.mode):
            size = len(node.target)
            if size < ext4.FAST_LINK:
                area = node.target.ljust(60, b"\0")
            else:
                runs = self._stored([node.target], size)
        elif stat.S_ISREG(node.mode):
            size, runs = node.size, self._stored(self._content(node), node.size)
        elif stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
            area = ext4.device_area(node.device)
        blocks = sum(length for _, length in runs)
        if runs or stat.S_ISREG(node.mode):
            area, more = self._area(runs)
            blocks += more
        inline, acl = ext4.inline_xattrs(node.xattrs), 0
        if inline is None:
            ((acl, _),) = self._blocks.take(1)
            blocks += 1
            name = file.name.decode("utf-8", "backslashreplace")
            self._put(acl, ext4.xattr_block(node.xattrs, name))
        about = Inode(node.mode, node.uid, node.gid, node.mtime, file.links, size)
        self._put_inode(file.number, ext4.inode(about, blocks, area, inline or b"", acl))

    def _stored(self, content: Iterable[bytes], size: int) -> list[Run]:
        """Write a file's content of `size` bytes; return where it lies."""
        runs = self._blocks.take(-(-size // BLOCK))
        places = iter(runs)
        at = left = written = 0
        for piece in content:
            view = memoryview(piece)
            while view:
                if not left:
                    start, length = next(places, (0, 0))
                    at, left = start * BLOCK, length * BLOCK
                    if not left:
                        raise GuestImageError("a file of the image is longer than it should be")
                part = view[:left]
                self._write(at, part)
                at, left, written = at + len(part), left - len(part), written + len(part)
                view = view[len(part) :]
        if written != size:
            raise GuestImageError(f"a file of the image has {written} bytes instead of {size}")
        return runs

    def _area(self, runs: Sequence[Run]) -> tuple[bytes, int]:
        """Return i_block for a file in `runs`, and how many blocks list them."""
        leaves = ext4.extent_leaves(runs)
        if len(leaves) > _NO_FILE_NODES:
            raise GuestImageError("a file of the image is too large")
        places = []
        for leaf in leaves:
            ((place, _),) = self._blocks.take(1)
            self._put(place, leaf)
            places.append(place)
        return ext4.extents_area(runs, places), len(places)

    def _finish(self, uuid: bytes, label: bytes, journal: bytes, folders: list[int]) -> None:
        """Write bitmaps, descriptors of groups and superblocks."""
        shape = self._shape
        table, free_blocks = bytearray(), 0
        last_inode = self._files[-1].number
        free_inodes = shape.inodes - last_inode
        for group in range(shape.groups):
            start, used = group * PER_GROUP + shape.heads(group), self._blocks.used(group)
            count = min(max(last_inode - group * shape.inodes_per_group, 0), shape.inodes_per_group)
            self._put(start, _bitmap(used, shape.length(group)))
            self._put(start + 1, _bitmap(count, shape.inodes_per_group))
            free = shape.length(group) - used
            free_blocks += free
            table += ext4.DESCRIPTOR.pack(
                *(start, start + 1, start + 2, free, shape.inodes_per_group - count),
                *(folders[group], 0, 0, 0, 0, 0, 0),
            )
        for group in filter(ext4.has_superblock, range(shape.groups)):
            block = ext4.superblock(
                *(shape, group),
                free_blocks=free_blocks,
                free_inodes=free_inodes,
                uuid=uuid,
                label=label,
                journal=journal,
            )
            at = group * PER_GROUP * BLOCK
            self._write(at if group else ext4.SUPERBLOCK_AT, block)
            self._write(at + BLOCK, bytes(table))

    def _put_inode(self, number: int, data: bytes) -> None:
        group, index = divmod(number - 1, self._shape.inodes_per_group)
        start = group * PER_GROUP + self._shape.heads(group) + 2
        self._write(start * BLOCK + index * INODE_SIZE, data)

    def _put(self, block: int, data: bytes) -> None:
        self._write(block * BLOCK, data)

    def _write(self, at: int, data: bytes | memoryview) -> None:
        if not data[0] and not data[-1] and bytes(data) == bytes(len(data)):
            # A hole reads so.
            return
        view = memoryview(data)
        while view:
            count = os.pwrite(self._descriptor, view, self._at + at)
            at, view = at + count, view[count:]


def _bitmap(used: int, there: int) -> bytes:
    """Return a block's bitmap: the first `used` are in use, and those from `there` on no ones."""
    whole = (1 << used) - 1 | (1 << PER_GROUP) - (1 << there)
    return whole.to_bytes(BLOCK, "little")
