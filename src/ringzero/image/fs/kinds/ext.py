"""ext2, ext3 and ext4 (Documentation/filesystems/ext4 of the Linux source).

Read: extents and block maps, 64-bit block numbers, inline data, flexible block groups, meta
block groups. Hashed directories are read in their linear order, checksums are not compared, and
the journal is not replayed: a dirty one is told as a warning.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator

from ringzero.errors import FileSystemError
from ringzero.image.fs import xattrs
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

_SUPERBLOCK = 1024
_MAGIC = 0xEF53
_ROOT = 2
_OLD_INODE_SIZE = 128

# Incompatible features ("Incompatible feature set"): those with which files can be read here.
_COMPRESSION, _FILE_TYPE, _RECOVER, _JOURNAL_DEVICE = 0x1, 0x2, 0x4, 0x8
_META_BG, _EXTENTS, _64BIT, _MMP, _FLEX_BG = 0x10, 0x40, 0x80, 0x100, 0x200
_EA_INODE, _CSUM_SEED, _LARGEDIR, _INLINE, _ENCRYPT, _CASEFOLD = (
    0x400, 0x2000, 0x4000, 0x8000, 0x10000, 0x20000,
)  # fmt: skip
_READABLE = (
    _FILE_TYPE | _RECOVER | _META_BG | _EXTENTS | _64BIT | _MMP | _FLEX_BG | _EA_INODE
    | _CSUM_SEED | _LARGEDIR | _INLINE | _ENCRYPT | _CASEFOLD
)  # fmt: skip
_UNREADABLE = {_COMPRESSION: "compression", _JOURNAL_DEVICE: "a journal device"}

_FLAG_EXTENTS, _FLAG_INLINE, _FLAG_ENCRYPTED = 0x80000, 0x1000_0000, 0x800
_EXTENT_MAGIC = 0xF30A
_EXTENT = struct.Struct("<IHHI")
_INDEX = struct.Struct("<IIHH")
# A tree of 5 levels maps more than the largest file has.
_MAX_DEPTH = 5
# An extent longer than this is allocated, and not written: it reads as zeros.
_UNWRITTEN = 32768
_XATTR_MAGIC = 0xEA02_0000
# Of a block with attributes.
_XATTR_HEADER = 32
# i_block, where extents, block numbers, short links and inline data begin.
_BLOCK_AREA, _BLOCK_BYTES = 40, 60
_DIRECT = 12


@record
class _Detail:
    flags: int
    raw: bytes


@FILE_SYSTEMS.register("ext")
class Ext(ExtentFileSystem):
    name = "ext"

    @classmethod
    def probe(cls, source: Part) -> bool:
        return peek(source, _SUPERBLOCK + 56, 2) == _MAGIC.to_bytes(2, "little")

    def __init__(self, source: Part) -> None:
        super().__init__(source)
        block = source.read(_SUPERBLOCK, 1024)

        def u32(offset: int) -> int:
            return int.from_bytes(block[offset : offset + 4], "little")

        def u16(offset: int) -> int:
            return int.from_bytes(block[offset : offset + 2], "little")

        if u32(24) > 6:
            raise self.damaged(f"blocks of 2^{10 + u32(24)} bytes")
        self._block = 1024 << u32(24)
        revision = u32(76)
        self._inodes = u32(0)
        self._per_group = u32(40)
        self._first_block = u32(20)
        self._blocks_per_group = u32(32)
        self._inode_size = u16(88) if revision else _OLD_INODE_SIZE
        self._incompatible = u32(96) if revision else 0
        self._descriptor = max(32, u16(254)) if self._incompatible & _64BIT else 32
        self._first_meta = u32(260)
        if not self._per_group or not self._blocks_per_group:
            raise self.damaged("block groups without inodes or blocks")
        if not _OLD_INODE_SIZE <= self._inode_size <= self._block or self._descriptor > self._block:
            raise self.damaged(f"inodes of {self._inode_size} bytes")
        if unknown := self._incompatible & ~_READABLE:
            names = [text for bit, text in _UNREADABLE.items() if unknown & bit]
            raise FileSystemError(
                f"the ext file system in {source.name} has features that ringzero does not read: "
                + (", ".join(names) or f"{unknown:#x}")
            )
        self.uuid = uuid_text(block[104:120])
        self.label = block[120:136].partition(b"\0")[0].decode("utf-8", "replace")
        if self._incompatible & _RECOVER:
            self.warnings.append(
                "its journal has not been replayed: it was not shut down in order, and the newest "
                "changes may not be seen"
            )

    # ---- inodes -----------------------------------------------------------

    def root(self) -> Node:
        return self.node(_ROOT)

    def node(self, key: int) -> Node:
        if not 0 < key <= self._inodes:
            raise self.damaged(f"an entry names inode {key} of {self._inodes}")
        group, index = divmod(key - 1, self._per_group)
        table = self._inode_table(group)
        raw = self.source.read(table * self._block + index * self._inode_size, self._inode_size)
        mode, low = struct.unpack_from("<H2xI", raw)
        flags, high = struct.unpack_from("<I", raw, 32)[0], struct.unpack_from("<I", raw, 108)[0]
        # In ext2 the upper half is only a regular file's.
        size = low | high << 32 if stat.S_ISREG(mode) or flags & _FLAG_EXTENTS else low
        return Node(key, mode, size, _Detail(flags, raw))

    def _inode_table(self, group: int) -> int:
        """Return the block where a group's inodes begin."""
        per_block = self._block // self._descriptor
        meta, index = divmod(group, per_block)
        if self._incompatible & _META_BG and meta >= self._first_meta:
            first = meta * per_block
            block = self._first_block + first * self._blocks_per_group + self._has_super(first)
        else:
            block = self._first_block + 1 + meta
        raw = self.source.read(block * self._block + index * self._descriptor, self._descriptor)
        (table,) = struct.unpack_from("<I", raw, 8)
        if self._descriptor >= 64:
            table |= struct.unpack_from("<I", raw, 40)[0] << 32
        return int(table)

    @staticmethod
    def _has_super(group: int) -> int:
        """Return 1 where a group begins with a copy of the superblock (sparse_super)."""
        if group <= 1:
            return 1
        for base in (3, 5, 7):
            power = base
            while power < group:
                power *= base
            if power == group:
                return 1
        return 0

    # ---- files ------------------------------------------------------------

    def content(self, node: Node, offset: int, length: int) -> bytes:
        detail: _Detail = node.detail
        if detail.flags & _FLAG_ENCRYPTED:
            raise FileSystemError(f"a file in {self.source.name} is encrypted (fscrypt)")
        if detail.flags & _FLAG_INLINE:
            return self._inline(node)[offset : offset + length].ljust(length, b"\0")
        if node.is_link and node.size < _BLOCK_BYTES:
            area = detail.raw[_BLOCK_AREA : _BLOCK_AREA + _BLOCK_BYTES]
            return area[offset : offset + length]
        return super().content(node, offset, length)

    def _inline(self, node: Node) -> bytes:
        """Return inline data: 60 bytes in place of block numbers, the rest in an attribute."""
        raw: bytes = node.detail.raw
        data = raw[_BLOCK_AREA : _BLOCK_AREA + _BLOCK_BYTES]
        for index, name, value in self._inode_xattrs(raw):
            # "system.data": prefix 7 is "system.".
            if index == 7 and name == b"data":
                return data + value
        return data

    def _inode_xattrs(self, raw: bytes) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield number, name and value of attributes behind an inode ("Extended Attributes")."""
        if self._inode_size <= _OLD_INODE_SIZE:
            return
        (extra,) = struct.unpack_from("<H", raw, 128)
        at = _OLD_INODE_SIZE + extra
        if at + 4 <= len(raw) and struct.unpack_from("<I", raw, at)[0] == _XATTR_MAGIC:
            yield from _listed_xattrs(raw, at + 4, at + 4)

    def attributes_of(self, node: Node) -> Attributes:
        raw: bytes = node.detail.raw
        uid, mtime, gid = struct.unpack_from("<H12xi4xH", raw, 2)
        acl, acl_high = struct.unpack_from("<I", raw, 104)[0], struct.unpack_from("<H", raw, 118)[0]
        uid_high, gid_high = struct.unpack_from("<HH", raw, 120)
        old, new = struct.unpack_from("<II", raw, _BLOCK_AREA)
        device = (0, 0)
        if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
            device = (old >> 8 & 0xFF, old & 0xFF) if old else xattrs.device(new)
        listed = list(self._inode_xattrs(raw))
        if block := acl | acl_high << 32:
            data = self._read_block(block)
            if struct.unpack_from("<I", data)[0] != _XATTR_MAGIC:
                raise self.damaged("a block of attributes of no valid form")
            listed += _listed_xattrs(data, _XATTR_HEADER, 0)
        found = {}
        for index, rest, value in listed:
            # ACLs have another form in ext than in an attribute that programs see.
            if index not in (xattrs.ACL_ACCESS, xattrs.ACL_DEFAULT):
                name = xattrs.full_name(index, rest)
                if name is not None:
                    found[name] = value
        return Attributes(uid | uid_high << 16, gid | gid_high << 16, mtime, device, found or None)

    def extents(self, node: Node) -> list[Extent]:
        area = node.detail.raw[_BLOCK_AREA : _BLOCK_AREA + _BLOCK_BYTES]
        found: list[Extent] = []
        if node.detail.flags & _FLAG_EXTENTS:
            self._extent_tree(area, _MAX_DEPTH, found, set())
        else:
            self._block_map(area, -(-node.size // self._block), found)
        return found

    def _extent_tree(self, data: bytes, depth: int, found: list[Extent], seen: set[int]) -> None:
        magic, count, _, level = struct.unpack_from("<HHHH", data)
        if magic != _EXTENT_MAGIC or level > depth:
            raise self.damaged("an extent tree of no valid form")
        if 12 + 12 * count > len(data) or len(found) + count > MAX_EXTENTS:
            raise self.damaged("an extent tree with too many entries")
        for at in range(12, 12 + 12 * count, 12):
            if level == 0:
                logical, length, high, low = _EXTENT.unpack_from(data, at)
                start: int | None = (low | high << 32) * self._block
                if length > _UNWRITTEN:
                    length, start = length - _UNWRITTEN, None
                found.append(Extent(logical * self._block, length * self._block, start))
                continue
            _, low, high, _ = _INDEX.unpack_from(data, at)
            block = low | high << 32
            if block in seen:
                raise self.damaged("an extent tree that contains itself")
            seen.add(block)
            if len(seen) > MAX_EXTENTS:
                raise self.damaged("an extent tree with too many blocks")
            self._extent_tree(self._read_block(block), level - 1, found, seen)

    def _block_map(self, area: bytes, blocks: int, found: list[Extent]) -> None:
        """Collect the blocks of ext2 and ext3: 12 direct ones, then 1, 2 and 3 levels of tables."""
        at = 0
        tables = set[int]()
        for index, number in enumerate(struct.unpack("<15I", area)):
            at = self._mapped(number, max(0, index - _DIRECT + 1), at, blocks, found, tables)

    def _mapped(
        self, block: int, level: int, at: int, blocks: int, found: list[Extent], tables: set[int]
    ) -> int:
        """Collect what `block` maps from the file's block `at` on; return the block after it."""
        per_block = self._block // 4
        if at >= blocks:
            return at
        if not block:
            # A hole as large as what the table would map.
            return at + int(per_block**level)
        if level == 0:
            self._add_block(at, block, found)
            return at + 1
        if block in tables or len(tables) > MAX_EXTENTS:
            raise self.damaged("a block map that contains itself")
        tables.add(block)
        for number in struct.unpack(f"<{per_block}I", self._read_block(block)):
            if at >= blocks:
                break
            at = self._mapped(number, level - 1, at, blocks, found, tables)
        return at

    def _add_block(self, at: int, block: int, found: list[Extent]) -> None:
        offset, start = at * self._block, block * self._block
        if found:
            last = found[-1]
            if last.end == start and last.offset + last.length == offset:
                found[-1] = last._replace(length=last.length + self._block)
                return
        if len(found) >= MAX_EXTENTS:
            raise self.damaged("a file in too many pieces")
        found.append(Extent(offset, self._block, start))

    def _read_block(self, block: int) -> bytes:
        return self.source.read(block * self._block, self._block)

    # ---- directories ------------------------------------------------------

    def entries(self, directory: Node) -> Iterator[tuple[bytes, int]]:
        if directory.detail.flags & _FLAG_INLINE:
            data = self._inline(directory)
            # The parent's inode is in place of "." and "..".
            yield from self._listed(data[4:_BLOCK_BYTES])
            yield from self._listed(data[_BLOCK_BYTES:])
            return
        for block in self.blocks(directory, self._block, directory.size):
            yield from self._listed(block)

    def _listed(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield what one block lists; that of a hash tree's inner node is one empty entry."""
        at = 0
        while at + 8 <= len(data):
            inode, length, name_length = struct.unpack_from("<IHB", data, at)
            # 64 KiB do not fit into 16 bits.
            length = 65536 if length in (0, 65535) and self._block == 65536 else length
            if length < 8 or at + length > len(data) or 8 + name_length > length:
                raise self.damaged(f"a directory entry of {length} bytes")
            if inode:
                yield data[at + 8 : at + 8 + name_length], inode
            at += length


def _listed_xattrs(data: bytes, at: int, base: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield what entries from `at` on list, whose values lie `base` and their own offset away.

    A value that has an inode of its own is left out.
    """
    while at + 16 <= len(data) and data[at : at + 4] != bytes(4):
        length, index, where, inode, size = struct.unpack_from("<BBHII", data, at)
        if not inode:
            yield index, data[at + 16 : at + 16 + length], data[base + where : base + where + size]
        at += 16 + (length + 3 & ~3)
