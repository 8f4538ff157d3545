"""Writing an EROFS image: a file tree, whose files' content is in the image's file already.

    members, size = content.place(stream, file.fileno(), writer.FIRST)
    tree.apply(members, 0)
    writer.write(tree.root, [writer.FIRST], file, writer.FIRST + size, uuid)

Behind the superblock lies the content of files (`content`); then come all inodes, in the order of
a walk through the tree, with what is short behind them (the end of a directory, a link's target,
the end of a file); then what is longer of directories and links. Equal trees with equal content
make equal images.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import BinaryIO

from ringzero.image.erofs import structures
from ringzero.image.erofs.structures import BLOCK, INLINE, INODE_SIZE, PLAIN, SLOT
from ringzero.image.layers.tree import Node
from ringzero.records import mutable_record

# Where the first file's content may lie, in bytes: behind the superblock.
FIRST = BLOCK


@mutable_record
class _Inode:
    """An inode as it will lie in the image: `place` in bytes from the metadata's beginning."""

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
    def body(self) -> int:
        return self.size - self.tail

    @property
    def whole(self) -> int:
        return INODE_SIZE + len(self.xattrs) + self.tail


def write(
    root: Node,
    begins: Sequence[int],
    file: BinaryIO,
    end: int,
    uuid: bytes,
    label: str = "",
    *,
    place: int | None = None,
) -> int:
    """Complete the image of the tree `root` in `file`; return the image's size in bytes.

    A node's content lies at its offset behind `begins[node.layer]`, whole blocks, and all content
    before `end`, another whole block. What lies there in the image is at `place` of the file: they
    differ where content is in other files. Raises OSError.
    """
    inodes = _number(root)
    found = {id(inode.node): inode for inode in inodes}
    first = end // BLOCK
    block = first - (-_place(inodes) // BLOCK)
    metadata = bytearray((block - first) * BLOCK)
    for inode in inodes:
        if not inode.body:
            continue
        if stat.S_ISREG(inode.node.mode):
            inode.block = (begins[inode.node.layer] + inode.node.offset) // BLOCK
        else:
            inode.block = block
            block += -(-inode.body // BLOCK)
    more = bytearray()
    for inode in inodes:
        content = _content(inode, found)
        behind = content[len(content) - inode.tail :]
        metadata[inode.place : inode.place + inode.whole] = _head(inode) + inode.xattrs + behind
        if inode.body and not stat.S_ISREG(inode.node.mode):
            more += content[: inode.body].ljust(-(-inode.body // BLOCK) * BLOCK, b"\0")
    file.seek(end if place is None else place)
    file.write(metadata)
    file.write(more)
    file.seek(0)
    uuid = uuid[:16].ljust(16, b"\0")
    label_ = label.encode()[:15].ljust(16, b"\0")
    nid = found[id(root)].nid
    file.write(structures.superblock(nid, len(inodes), block, first, uuid, label_))
    file.flush()
    return block * BLOCK


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
    # No inode has the number 0, which readdir(3) takes for none.
    at = SLOT
    for inode in inodes:
        inode.tail = len(inode.node.tail)
        if not stat.S_ISREG(inode.node.mode):
            inode.tail = structures.tail_size(inode.size, len(inode.xattrs), file=False)
        begin = at
        if inode.tail and at // BLOCK != (at + inode.whole - 1) // BLOCK:
            begin = -(-at // BLOCK) * BLOCK
        inode.place = begin
        at = -(-(begin + inode.whole) // SLOT) * SLOT
    return at


def _head(inode: _Inode) -> bytes:
    node, where = inode.node, inode.block
    if stat.S_IFMT(node.mode) in (stat.S_IFCHR, stat.S_IFBLK):
        where = structures.device_number(*node.device)
    return structures.inode(
        INLINE if inode.tail else PLAIN, node.mode, inode.size, where, inode.number,
        (node.uid, node.gid), node.mtime, inode.links, len(inode.xattrs),
    )  # fmt: skip


def _content(inode: _Inode, found: dict[int, _Inode]) -> bytes:
    """Return the content of a directory or link; of a file what stands behind its inode."""
    if inode.node.children is not None:
        return structures.directory(_entries(inode, found))
    return inode.node.target or inode.node.tail


def _entries(inode: _Inode, found: dict[int, _Inode]) -> list[tuple[bytes, int, int]]:
    children = inode.node.children or {}
    entries = [(name, found[id(n)].nid, n.mode) for name, n in children.items()]
    parent = inode.parent or inode
    entries += [(b".", inode.nid, inode.node.mode), (b"..", parent.nid, parent.node.mode)]
    return sorted(entries)
