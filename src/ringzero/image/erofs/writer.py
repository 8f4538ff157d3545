"""Writing an EROFS image: a file tree, whose content lies in other files.

    write(tree.root, sources, file, uuid)

Behind the superblock lie all inodes, in the order of a walk through the tree, with what is
short behind them (the end of a directory, a link's target, a small file); then the content of
files, in the same order, each from a block's beginning. Equal trees make equal images. Blocks of
zeros are holes in the image file. Content is copied by the kernel (copy_file_range(2)).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import BinaryIO

from ringzero.errors import GuestImageError
from ringzero.image.erofs import structures
from ringzero.image.erofs.structures import BLOCK, INLINE, INODE_SIZE, PLAIN, SLOT
from ringzero.image.layers.tree import Node
from ringzero.records import mutable_record

# A file's last part up to this is kept beside its inode: read with it, at no cost of its own.
_INLINE_FILE = 1024
# Inodes are numbered from the image's beginning: no number is 0.
_META_BLOCK = 0
# Where the kernel copies no ranges between files, so much at a time is copied here.
_CHUNK = 1 << 20


@mutable_record
class _Inode:
    """An inode as it will lie in the image: `place` in bytes from the image's beginning."""

    node: Node
    # The directory that it is in; of the root None, which is its own.
    parent: _Inode | None
    number: int
    xattrs: bytes
    size: int
    place: int = 0
    # How much stands behind the inode, and the first block of the rest.
    tail: int = 0
    block: int = 0
    links: int = 1

    @property
    def nid(self) -> int:
        return self.place // SLOT

    @property
    def blocks(self) -> int:
        return -(-(self.size - self.tail) // BLOCK)

    @property
    def whole(self) -> int:
        return INODE_SIZE + len(self.xattrs) + self.tail


def write(root: Node, sources: Sequence[int], file: BinaryIO, uuid: bytes, label: str = "") -> int:
    """Write the image of the tree `root` to the empty `file`; return its size in bytes.

    A node's content lies in the file with the descriptor `sources[node.layer]`. Raises OSError,
    GuestImageError when a source is cut short.
    """
    inodes = _number(root)
    found = {id(inode.node): inode for inode in inodes}
    end = _place(inodes)
    block = -(-end // BLOCK)
    metadata = bytearray(block * BLOCK)
    for inode in inodes:
        if count := inode.blocks:
            inode.block = block
            block += count
    size = block * BLOCK
    file.truncate(size)
    for inode in inodes:
        _write_inode(inode, found, sources, metadata, file)
    uuid = uuid[:16].ljust(16, b"\0")
    metadata[:BLOCK] = structures.superblock(
        found[id(root)].nid, len(inodes), block, _META_BLOCK, uuid,
        label.encode()[:15].ljust(16, b"\0"),
    )  # fmt: skip
    file.seek(0)
    file.write(metadata)
    file.flush()
    return size


def _number(root: Node) -> list[_Inode]:
    """Return the inodes of a tree: each node once, parents first, names in their order."""
    found: dict[int, _Inode] = {}
    todo: list[tuple[Node, _Inode | None]] = [(root, None)]
    while todo:
        node, parent = todo.pop()
        inode = found.get(id(node))
        if inode is not None:
            inode.links += 1
            continue
        children = node.children
        size = len(node.target) if stat.S_ISLNK(node.mode) else node.size
        if children is not None:
            size = structures.directory_size(sorted([b".", b"..", *children]))
        inode = _Inode(node, parent, len(found) + 1, structures.xattrs(node.xattrs), size)
        found[id(node)] = inode
        if children is not None:
            inode.links = 2 + sum(child.children is not None for child in children.values())
            todo += [(children[name], inode) for name in sorted(children, reverse=True)]
    return list(found.values())


def _place(inodes: Sequence[_Inode]) -> int:
    """Give each inode its place; return where the last one ends.

    What stands behind an inode must not cross the border of a block.
    """
    at = BLOCK
    for inode in inodes:
        rest = inode.size % BLOCK
        fits = INODE_SIZE + len(inode.xattrs) + rest <= BLOCK
        if fits and (rest <= _INLINE_FILE or not stat.S_ISREG(inode.node.mode)):
            inode.tail = rest
        begin = at
        if inode.tail and at // BLOCK != (at + inode.whole - 1) // BLOCK:
            begin = -(-at // BLOCK) * BLOCK
        inode.place = begin
        at = -(-(begin + inode.whole) // SLOT) * SLOT
    return at


def _write_inode(
    inode: _Inode,
    found: dict[int, _Inode],
    sources: Sequence[int],
    metadata: bytearray,
    file: BinaryIO,
) -> None:
    node = inode.node
    kind, where = stat.S_IFMT(node.mode), inode.block
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        where = structures.device_number(*node.device)
    head = structures.inode(
        INLINE if inode.tail else PLAIN, node.mode, inode.size, where, inode.number,
        (node.uid, node.gid), node.mtime, inode.links, len(inode.xattrs),
    )  # fmt: skip
    body = inode.size - inode.tail
    if node.children is not None:
        content = structures.directory(_entries(inode, found))
    elif kind == stat.S_IFLNK:
        content = node.target
    elif kind == stat.S_IFREG and inode.size:
        source = sources[node.layer]
        if body:
            _copy(source, node.offset, file.fileno(), inode.block * BLOCK, body)
        content = b""
        if inode.tail:
            content = os.pread(source, inode.tail, node.offset + body)
            if len(content) != inode.tail:
                raise _cut_short()
        metadata[inode.place : inode.place + inode.whole] = head + inode.xattrs + content
        return
    else:
        content = b""
    if body:
        os.pwrite(file.fileno(), content[:body], inode.block * BLOCK)
    metadata[inode.place : inode.place + inode.whole] = head + inode.xattrs + content[body:]


def _entries(inode: _Inode, found: dict[int, _Inode]) -> list[tuple[bytes, int, int]]:
    children = inode.node.children or {}
    entries = [(name, found[id(n)].nid, n.mode) for name, n in children.items()]
    parent = inode.parent or inode
    entries += [(b".", inode.nid, inode.node.mode), (b"..", parent.nid, parent.node.mode)]
    return sorted(entries)


def _copy(source: int, offset: int, target: int, place: int, length: int) -> None:
    """Copy between files; the target's range is a hole before."""
    while length:
        try:
            count = os.copy_file_range(source, target, length, offset, place)
        except OSError:
            data = os.pread(source, min(length, _CHUNK), offset)
            count = os.pwrite(target, data, place) if data.strip(b"\0") else len(data)
        if not count:
            raise _cut_short()
        offset, place, length = offset + count, place + count, length - count


def _cut_short() -> GuestImageError:
    return GuestImageError("the content of a layer is shorter than it says")
