"""XFS, versions 4 and 5 ("XFS Algorithms & Data Structures", 3rd edition). All is big-endian.

Read: extents and B+trees, short, block, leaf and node directories, inline and remote links, large
extent counters. Checksums are not compared and the log is not replayed: a dirty one is told as a
warning.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ringzero.errors import FileSystemError
from ringzero.image.fs import xfslog
from ringzero.image.fs.contract import (
    FILE_SYSTEMS,
    MAX_EXTENTS,
    Attributes,
    Extent,
    ExtentFileSystem,
    Node,
    peek,
    uuid_text,
)
from ringzero.image.source import Part
from ringzero.records import record

_MAGIC = b"XFSB"
_INODE = b"IN"
_DEVICE, _LOCAL, _EXTENTS, _BTREE = 0, 1, 2, 3
# Incompatible features of version 5 ("sb_features_incompat").
_FTYPE, _NEEDS_REPAIR = 1 << 0, 1 << 4
# Sparse inodes, metadata UUID, big times, 64-bit extent counters, exchange, parents, metadata tree.
_READABLE = 0x1FF
_V4_FTYPE = 0x200
_FLAG_REALTIME = 1
_FLAG2_BIG_TIME, _FLAG2_LARGE_COUNTERS = 1 << 3, 1 << 4
# Big times count nanoseconds from the earliest second that 32 bits have.
_BIG_TIME_BEGINS = 1 << 31
# By the namespace's flags of an attribute ("xfs_attr_sf_entry"): ROOT, SECURE or none.
_XATTR_NAMES, _XATTR_SPACES = {0: b"user.", 2: b"trusted.", 4: b"security."}, 0b1110
# Where a directory's leaf blocks begin, in bytes of its own space.
_LEAF_OFFSET = 32 << 30
_MAX_LEVELS = 9
_BLOCK_DIRECTORIES = (b"XD2B", b"XDB3")
_DIRECTORIES = (*_BLOCK_DIRECTORIES, b"XD2D", b"XDD3")
_LINK_HEADER = 56


@record
class _Detail:
    format: int
    flags: int
    count: int
    fork: bytes
    # The whole inode.
    raw: bytes


@FILE_SYSTEMS.register("xfs")
class Xfs(ExtentFileSystem):
    name = "XFS"

    @classmethod
    def probe(cls, source: Part) -> bool:
        return peek(source, 0, 4) == _MAGIC

    def __init__(self, source: Part) -> None:
        super().__init__(source)
        head = source.read(0, 512)
        (self._block,) = struct.unpack_from(">I", head, 4)
        (self._root,) = struct.unpack_from(">Q", head, 56)
        self._ag_blocks, self._ags = struct.unpack_from(">II", head, 84)
        version, _, self._inode_size = struct.unpack_from(">HHH", head, 100)
        self._per_block_log, self._ag_log = head[123], head[124]
        features2, incompatible = (*struct.unpack_from(">I", head, 200), head[216:220])
        if self._block not in (1 << n for n in range(9, 17)) or not self._ag_blocks:
            raise self.damaged(f"blocks of {self._block} bytes")
        if not 256 <= self._inode_size <= self._block or self._per_block_log > 8:
            raise self.damaged(f"inodes of {self._inode_size} bytes")
        if self._ag_log > 31 or head[192] > 16 - self._block.bit_length() + 1:
            raise self.damaged("groups or directory blocks of no valid size")
        self._directory_block = self._block << head[192]
        self._v5 = version & 0xF == 5
        features = int.from_bytes(incompatible, "big") if self._v5 else 0
        if features & ~_READABLE:
            raise FileSystemError(
                f"the XFS in {source.name} has features that ringzero does not read: {features:#x}"
            )
        if features & _NEEDS_REPAIR:
            self.warnings.append("it needs a repair (xfs_repair)")
        if self._has_dirty_log(head):
            self.warnings.append(
                "its log has not been replayed: it was not shut down in order, and the newest "
                "changes may not be seen"
            )
        self._ftype = bool(features & _FTYPE if self._v5 else features2 & _V4_FTYPE)
        self.uuid = uuid_text(head[32:48])
        self.label = head[108:120].rstrip(b"\0").decode("utf-8", "replace")

    def _has_dirty_log(self, head: bytes) -> bool:
        """Tell whether the log has something to replay; one on another device is not looked at."""
        (start,) = struct.unpack_from(">Q", head, 48)
        (blocks,) = struct.unpack_from(">I", head, 96)
        if not start or not blocks:
            return False
        try:
            at, length = self._bytes_of(start), blocks * self._block
            return xfslog.is_dirty(Part(self.source, at, length, "its log"))
        except FileSystemError:
            return True

    def root(self) -> Node:
        return self.node(self._root)

    def _bytes_of(self, block: int) -> int:
        """Return where a block lies: its number has that of its group in the upper bits."""
        group, inside = block >> self._ag_log, block & (1 << self._ag_log) - 1
        if group >= self._ags or inside >= self._ag_blocks:
            raise self.damaged(f"block {block} lies in no group")
        return int((group * self._ag_blocks + inside) * self._block)

    def node(self, key: int) -> Node:
        block, index = key >> self._per_block_log, key & (1 << self._per_block_log) - 1
        at = self._bytes_of(block) + index * self._inode_size
        raw = self.source.read(at, self._inode_size)
        if raw[:2] != _INODE:
            raise self.damaged(f"inode {key} is none")
        (mode,) = struct.unpack_from(">H", raw, 2)
        version, kind = raw[4], raw[5]
        (size,) = struct.unpack_from(">Q", raw, 56)
        (count,) = struct.unpack_from(">I", raw, 76)
        fork_offset, (flags,) = raw[82], struct.unpack_from(">H", raw, 90)
        start = 176 if version >= 3 else 100
        if version >= 3 and int.from_bytes(raw[120:128], "big") & _FLAG2_LARGE_COUNTERS:
            (count,) = struct.unpack_from(">Q", raw, 24)
        end = start + fork_offset * 8 if fork_offset else self._inode_size
        return Node(key, mode, size, _Detail(kind, flags, count, raw[start:end], raw))

    def attributes_of(self, node: Node) -> Attributes:
        """As of any kind; attributes that do not fit into an inode are left out."""
        detail: _Detail = node.detail
        raw = detail.raw
        uid, gid = struct.unpack_from(">II", raw, 8)
        (mtime,) = struct.unpack_from(">i", raw, 40)
        if raw[4] >= 3 and int.from_bytes(raw[120:128], "big") & _FLAG2_BIG_TIME:
            mtime = int.from_bytes(raw[40:48], "big") // 10**9 - _BIG_TIME_BEGINS
        device = (0, 0)
        if detail.format == _DEVICE:
            (number,) = struct.unpack_from(">I", detail.fork)
            device = number >> 18, number & 0x3FFFF
        found = {}
        if raw[82] and raw[83] == _LOCAL:
            at = (176 if raw[4] >= 3 else 100) + raw[82] * 8
            for space, name, value in _short_xattrs(raw[at:]):
                begin = _XATTR_NAMES.get(space)
                if begin is not None:
                    found[begin + name] = value
        return Attributes(uid, gid, mtime, device, found or None)

    # ---- files ------------------------------------------------------------

    def content(self, node: Node, offset: int, length: int) -> bytes:
        detail: _Detail = node.detail
        if detail.flags & _FLAG_REALTIME and node.is_file:
            raise FileSystemError(f"a file of {self.source.name} lies in a realtime section")
        if detail.format == _LOCAL:
            return detail.fork[: node.size][offset : offset + length].ljust(length, b"\0")
        if node.is_link and self._v5:
            return self._remote_link(node)[offset : offset + length]
        return super().content(node, offset, length)

    def _remote_link(self, node: Node) -> bytes:
        """Return a link's target from blocks of its own, each piece with a header."""
        data = b""
        for extent in self.extents(node):
            if extent.start is None or len(data) >= node.size:
                break
            piece = self.source.read(extent.start, min(extent.length, 65536))
            (count,) = struct.unpack_from(">I", piece, 8)
            if not count:
                raise self.damaged("a symbolic link with an empty piece")
            data += piece[_LINK_HEADER : _LINK_HEADER + count]
        return data

    def extents(self, node: Node) -> list[Extent]:
        detail: _Detail = node.detail
        found: list[Extent] = []
        if detail.format == _EXTENTS:
            self._records(detail.fork, 0, detail.count, found)
        elif detail.format == _BTREE:
            level, count = struct.unpack_from(">HH", detail.fork)
            most = (len(detail.fork) - 4) // 16
            self._follow(detail.fork, 4 + 8 * most, min(count, most), level, found, set())
        return found

    def _records(self, data: bytes, at: int, count: int, found: list[Extent]) -> None:
        if at + 16 * count > len(data) or len(found) + count > MAX_EXTENTS:
            raise self.damaged("more extents than there is room for")
        for n in range(count):
            high, low = struct.unpack_from(">QQ", data, at + 16 * n)
            block = (high & 0x1FF) << 43 | low >> 21
            # The uppermost bit: allocated, and not written.
            start = None if high >> 63 else self._bytes_of(block)
            offset = high >> 9 & (1 << 54) - 1
            found.append(Extent(offset * self._block, (low & 0x1FFFFF) * self._block, start))

    def _follow(
        self, data: bytes, at: int, count: int, level: int, found: list[Extent], seen: set[int]
    ) -> None:
        """Read the blocks below one of a B+tree whose pointers begin at `at`."""
        if not 0 < level <= _MAX_LEVELS:
            raise self.damaged("a tree of extents of no valid form")
        for n in range(count):
            (block,) = struct.unpack_from(">Q", data, at + 8 * n)
            if block in seen:
                raise self.damaged("a tree of extents that contains itself")
            seen.add(block)
            below = self.source.read(self._bytes_of(block), self._block)
            if below[:4] not in (b"BMAP", b"BMA3"):
                raise self.damaged("a tree of extents with another block in it")
            own, entries = struct.unpack_from(">HH", below, 4)
            header = 72 if self._v5 else 24
            most = (self._block - header) // 16
            if own != level - 1 or entries > most:
                raise self.damaged("a tree of extents of no valid form")
            if own == 0:
                self._records(below, header, entries, found)
            else:
                self._follow(below, header + 8 * most, entries, own, found, seen)

    # ---- directories ------------------------------------------------------

    def entries(self, directory: Node) -> Iterator[tuple[bytes, int]]:
        detail: _Detail = directory.detail
        if detail.format == _LOCAL:
            yield from self._short_form(detail.fork)
            return
        end = min(_LEAF_OFFSET, directory.size)
        for block in self.blocks(directory, self._directory_block, end):
            yield from self._data_block(block)

    def _short_form(self, fork: bytes) -> Iterator[tuple[bytes, int]]:
        width = 8 if fork[1] else 4
        at = 2 + width
        for _ in range(fork[0] or fork[1]):
            length = fork[at]
            name = fork[at + 3 : at + 3 + length]
            at += 3 + length + self._ftype
            yield name, int.from_bytes(fork[at : at + width], "big")
            at += width

    def _data_block(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        if data[:4] not in _DIRECTORIES:
            # A hole.
            return
        at, end = 64 if self._v5 else 16, len(data)
        if data[:4] in _BLOCK_DIRECTORIES:
            (leaves,) = struct.unpack_from(">I", data, end - 8)
            end -= 8 + 8 * leaves
        while at + 8 < end:
            tag, free = struct.unpack_from(">HH", data, at)
            if tag == 0xFFFF:
                if free < 8:
                    raise self.damaged("a directory with an empty gap")
                at += free
                continue
            (inode, length) = struct.unpack_from(">QB", data, at)
            if not length:
                raise self.damaged("a directory entry without a name")
            yield data[at + 9 : at + 9 + length], inode
            at += 9 + length + self._ftype + 2 + 7 & ~7


def _short_xattrs(fork: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield namespace, name and value of attributes that stand in an inode."""
    at = 4
    for _ in range(fork[2]):
        length, size, flags = fork[at], fork[at + 1], fork[at + 2]
        begin = at + 3
        yield (
            flags & _XATTR_SPACES,
            fork[begin : begin + length],
            fork[begin + length : begin + length + size],
        )
        at = begin + length + size
