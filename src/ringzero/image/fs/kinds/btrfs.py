"""Btrfs on one device (btrfs.readthedocs.io, "On-disk Format"). All is little-endian.

Read: chunks of one device, subvolumes, inline, plain and compressed extents (zlib, LZO, zstd).
Checksums are not compared, and the log tree is not replayed.

Paths: distributions keep / in a subvolume ("root", "@", "@rootfs") that rootflags= or the default
names, while GRUB counts from the top. What is not found in the default subvolume is looked for at
the top, and then in the subvolumes of the top that hold a system.
"""

from __future__ import annotations

import bisect
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from ringzero.errors import FileSystemError, NotFoundError
from ringzero.image.fs import lzo
from ringzero.image.fs.contract import (
    FILE_SYSTEMS,
    Attributes,
    FileSystem,
    Node,
    peek,
    uuid_text,
)
from ringzero.image.source import Part
from ringzero.records import record

_SUPERBLOCK = 65536
_MAGIC = b"_BHRfS_M"
_INODE_ITEM, _DIR_ITEM, _DIR_INDEX, _EXTENT_DATA, _ROOT_ITEM, _CHUNK_ITEM = 1, 84, 96, 108, 132, 228
_XATTR_ITEM = 24
_CHUNK_TREE, _FS_TREE, _FIRST_INODE, _ROOT_DIRECTORY = 3, 5, 256, 6
_KEY = struct.Struct("<QBQ")
_HEADER, _ITEM, _POINTER = 101, 25, 33
_MAX_LEVEL = 8
_MAX_CHUNKS = 100_000
# What one compressed extent unpacks to, in bytes: the kernel makes 128 KiB of them.
_MAX_EXTENT = 1 << 20
# What is unpacked for a read, in bytes, and for each byte of it: a file written over and over
# shows one sector of each extent.
_UNPACKED, _UNPACKED_EACH = 64 << 20, 64
_INLINE, _PREALLOCATED = 0, 2
_ZLIB, _LZO, _ZSTD = 1, 2, 3
# Several stripes of which each is the whole: DUP, RAID1 and its kin.
_STRIPED = 1 << 3 | 1 << 6 | 1 << 7 | 1 << 8
_SYSTEM_FILES = ("etc/os-release", "usr/lib/os-release", "etc/fstab", "sbin/init")
# Bytes of nodes that are kept, so that a walk does not read them over and over.
_KEPT = 64 << 20


class _Key(NamedTuple):
    """A node: the tree of its subvolume, its inode."""

    tree: int
    inode: int


class _Chunk(NamedTuple):
    logical: int
    length: int
    physical: int

    def start(self) -> int:
        """Return the logical address, to sort by."""
        return self.logical


@record
class _Piece:
    """One extent item of a file."""

    offset: int
    length: int
    compression: int
    inline: bytes | None
    # Of the whole extent, and the part that the file has of it.
    start: int = 0
    stored: int = 0
    unpacked: int = 0
    skip: int = 0


@FILE_SYSTEMS.register("btrfs")
class Btrfs(FileSystem):
    name = "btrfs"

    @classmethod
    def probe(cls, source: Part) -> bool:
        return peek(source, _SUPERBLOCK + 64, 8) == _MAGIC

    def __init__(self, source: Part) -> None:
        super().__init__(source)
        block = source.read(_SUPERBLOCK, 4096)
        root, chunks, log = struct.unpack_from("<QQQ", block, 80)
        (devices,) = struct.unpack_from("<Q", block, 136)
        (self._node_size,) = struct.unpack_from("<I", block, 148)
        (self._sector,) = struct.unpack_from("<I", block, 144)
        (system,) = struct.unpack_from("<I", block, 160)
        if self._node_size not in (1 << n for n in range(12, 17)) or system > 2048:
            raise self.damaged(f"nodes of {self._node_size} bytes")
        if self._sector not in (1 << n for n in range(12, 17)):
            raise self.damaged(f"sectors of {self._sector} bytes")
        if devices != 1:
            raise FileSystemError(f"the btrfs in {source.name} lies on {devices} devices")
        if log:
            self.warnings.append(
                "its log has not been replayed: it was not shut down in order, and the newest "
                "changes may not be seen"
            )
        self.uuid = uuid_text(block[32:48])
        self.label = block[299:555].partition(b"\0")[0].decode("utf-8", "replace")
        self._nodes: dict[int, bytes] = {}
        # By their logical addresses.
        self._chunks: list[_Chunk] = []
        self._system_chunks(block[811 : 811 + system])
        for key, data in self._items(chunks, (0, 0, 0), (1 << 64, 0, 0)):
            if key[1] == _CHUNK_ITEM:
                self._add_chunk(key[2], data)
        self._trees = dict(self._roots(root))
        if _FS_TREE not in self._trees:
            raise self.damaged("there is no tree of files")
        self._default = self._default_subvolume(root)
        self._systems: list[Node] | None = None

    # ---- chunks and trees -------------------------------------------------

    def _system_chunks(self, data: bytes) -> None:
        at = 0
        while at + 17 + 80 <= len(data):
            _, kind, logical = _KEY.unpack_from(data, at)
            if kind != _CHUNK_ITEM:
                raise self.damaged("a list of system chunks of no valid form")
            at += 17
            at += self._add_chunk(logical, data[at:])

    def _add_chunk(self, logical: int, data: bytes) -> int:
        """Enter a chunk; return the length of its item."""
        length, _, _, kind = struct.unpack_from("<QQQQ", data)
        (stripes,) = struct.unpack_from("<H", data, 44)
        if kind & _STRIPED:
            raise FileSystemError(f"the btrfs in {self.source.name} is striped over devices")
        if not stripes or len(self._chunks) > _MAX_CHUNKS:
            raise self.damaged("too many chunks, or one without a place")
        (physical,) = struct.unpack_from("<Q", data, 48 + 8)
        bisect.insort(self._chunks, _Chunk(logical, length, physical))
        return 48 + 32 * int(stripes)

    def _logical(self, logical: int, length: int) -> bytes:
        """Return bytes by their logical address."""
        place = bisect.bisect_right(self._chunks, logical, key=_Chunk.start) - 1
        if place >= 0:
            chunk = self._chunks[place]
            inside = logical - chunk.logical
            if inside + length <= chunk.length:
                return self.source.read(chunk.physical + inside, length)
        raise self.damaged(f"no chunk holds address {logical}")

    def _tree_node(self, address: int) -> bytes:
        data = self._nodes.get(address)
        if data is None:
            data = self._logical(address, self._node_size)
            if struct.unpack_from("<Q", data, 48)[0] != address:
                raise self.damaged(f"the node at {address} is another one")
            self._check_order(data)
            if len(self._nodes) * self._node_size >= _KEPT:
                self._nodes.clear()
            self._nodes[address] = data
        return data

    def _check_order(self, data: bytes) -> None:
        """Raise for a node whose keys do not ascend: what looks for a key would read all."""
        (count,) = struct.unpack_from("<I", data, 96)
        step = _POINTER if data[100] else _ITEM
        if _HEADER + count * step > len(data):
            raise self.damaged("a tree of no valid form")
        last = (-1, 0, 0)
        for at in range(_HEADER, _HEADER + count * step, step):
            key = _KEY.unpack_from(data, at)
            if key <= last:
                raise self.damaged("a tree whose keys do not ascend")
            last = key

    def _items(
        self, address: int, first: tuple[int, int, int], last: tuple[int, int, int]
    ) -> Iterator[tuple[tuple[int, int, int], bytes]]:
        """Yield the (key, data) of a tree from key `first` to `last`, both included."""
        seen = set[int]()
        waiting = [(address, _MAX_LEVEL)]
        while waiting:
            address, level = waiting.pop()
            if address in seen:
                raise self.damaged("a tree that contains itself")
            seen.add(address)
            data = self._tree_node(address)
            (count,) = struct.unpack_from("<I", data, 96)
            own = data[100]
            if own >= level:
                raise self.damaged("a tree of no valid form")
            if own == 0:
                for n in range(count):
                    at = _HEADER + _ITEM * n
                    key = _KEY.unpack_from(data, at)
                    if first <= key <= last:
                        offset, size = struct.unpack_from("<II", data, at + 17)
                        yield key, data[_HEADER + offset : _HEADER + offset + size]
                continue
            pointers = [(_KEY.unpack_from(data, _HEADER + _POINTER * n), n) for n in range(count)]
            below = []
            for place, (key, n) in enumerate(pointers):
                beyond = pointers[place + 1][0] if place + 1 < count else None
                if key <= last and (beyond is None or beyond >= first):
                    (child,) = struct.unpack_from("<Q", data, _HEADER + _POINTER * n + 17)
                    below.append((child, own))
            waiting += reversed(below)

    def _roots(self, root: int) -> Iterator[tuple[int, int]]:
        """Yield (tree, address of its root) of all trees."""
        for (tree, kind, _), data in self._items(root, (0, 0, 0), (1 << 64, 0, 0)):
            if kind == _ROOT_ITEM:
                yield tree, struct.unpack_from("<Q", data, 176)[0]

    def _default_subvolume(self, root: int) -> int:
        first = (_ROOT_DIRECTORY, _DIR_ITEM, 0)
        for _, data in self._items(root, first, (_ROOT_DIRECTORY, _DIR_ITEM, 1 << 64)):
            for name, (tree, kind, _) in _listed(data):
                if name == b"default" and kind == _ROOT_ITEM and tree in self._trees:
                    return tree
        return _FS_TREE

    # ---- paths ------------------------------------------------------------

    def root(self) -> Node:
        return self.node(_Key(self._default, _FIRST_INODE))

    def _walk(self, path: str, *, follow: bool = True, top: Node | None = None) -> Node:
        try:
            return super()._walk(path, follow=follow, top=top)
        except NotFoundError:
            for other in () if top is not None else self._others():
                try:
                    return super()._walk(path, follow=follow, top=other)
                except NotFoundError:
                    continue
            raise

    def _others(self) -> list[Node]:
        """Return the directories in which a path is looked for behind the default subvolume."""
        if self._systems is None:
            top = self.node(_Key(_FS_TREE, _FIRST_INODE))
            found = [] if self._default == _FS_TREE else [top]
            self._systems = found
            for _, key in sorted(self.children(top).items()):
                below = self._node(key)
                if key.inode != _FIRST_INODE or not below.is_directory:
                    continue
                if any(self._has(below, path) for path in _SYSTEM_FILES):
                    found.append(below)
        return self._systems

    def _has(self, top: Node, path: str) -> bool:
        try:
            super()._walk(path, top=top)
        except NotFoundError:
            return False
        return True

    # ---- inodes -----------------------------------------------------------

    def node(self, key: _Key) -> Node:
        if key.tree not in self._trees:
            raise self.damaged(f"there is no subvolume {key.tree}")
        wanted = (key.inode, _INODE_ITEM, 0)
        for _, data in self._items(self._trees[key.tree], wanted, wanted):
            (size,) = struct.unpack_from("<Q", data, 16)
            (mode,) = struct.unpack_from("<I", data, 52)
            return Node(key, mode, size)
        raise self.damaged(f"inode {key.inode} is missing")

    def attributes_of(self, node: Node) -> Attributes:
        tree, inode = node.key
        wanted = (inode, _INODE_ITEM, 0)
        found: dict[bytes, bytes] = {}
        first, last = (inode, _XATTR_ITEM, 0), (inode, _XATTR_ITEM, 1 << 64)
        for _, data in self._items(self._trees[tree], first, last):
            at = 0
            while at + 30 <= len(data):
                size, length = struct.unpack_from("<HH", data, at + 25)
                begin = at + 30
                at = begin + length + size
                found[data[begin : begin + length]] = data[begin + length : at]
        for _, data in self._items(self._trees[tree], wanted, wanted):
            uid, gid = struct.unpack_from("<II", data, 44)
            (number,) = struct.unpack_from("<Q", data, 56)
            (mtime,) = struct.unpack_from("<q", data, 136)
            device = (number >> 20 & 0xFFF, number & 0xFFFFF) if number else (0, 0)
            return Attributes(uid, gid, mtime, device, found or None)
        raise self.damaged(f"inode {inode} is missing")

    def entries(self, directory: Node) -> Iterator[tuple[bytes, _Key]]:
        tree, inode = directory.key
        first, last = (inode, _DIR_INDEX, 0), (inode, _DIR_INDEX, 1 << 64)
        for _, data in self._items(self._trees[tree], first, last):
            for name, (target, kind, _) in _listed(data):
                if kind == _ROOT_ITEM:
                    # An empty directory, where a snapshot holds the place of a subvolume.
                    if target in self._trees:
                        yield name, _Key(target, _FIRST_INODE)
                else:
                    yield name, _Key(tree, target)

    def content(self, node: Node, offset: int, length: int) -> bytes:
        data = bytearray(length)
        end = offset + length
        left = _UNPACKED + _UNPACKED_EACH * length
        tree, inode = node.key
        first, last = (inode, _EXTENT_DATA, 0), (inode, _EXTENT_DATA, max(0, end - 1))
        for key, item in self._items(self._trees[tree], first, last):
            piece = _piece(key[2], item)
            low, high = max(offset, piece.offset), min(end, piece.offset + piece.length)
            if low < high:
                left -= piece.unpacked if piece.compression else 0
                if left < 0:
                    raise self.damaged("a file of too many compressed pieces")
                content = self._content_of(piece, low - piece.offset, high - low)
                data[low - offset : low - offset + len(content)] = content[: high - low]
        return bytes(data)

    def _content_of(self, piece: _Piece, skip: int, length: int) -> bytes:
        if piece.inline is None and not piece.start:
            return bytes(length)
        if not piece.compression and piece.inline is None:
            return self._logical(piece.start + piece.skip + skip, length)
        if piece.unpacked > _MAX_EXTENT or piece.stored > _MAX_EXTENT:
            raise self.damaged(f"a compressed extent of {piece.unpacked} bytes")
        packed = piece.inline
        if packed is None:
            packed = self._logical(piece.start, piece.stored)
        whole = self._unpacked(packed, piece.compression, piece.unpacked)
        return whole[piece.skip + skip : piece.skip + skip + length]

    def _unpacked(self, packed: bytes, compression: int, size: int) -> bytes:
        if not compression:
            return packed
        if compression == _ZLIB:
            try:
                return zlib.decompressobj().decompress(packed, size)
            except zlib.error as fault:
                raise self.damaged(f"compressed data ({fault})") from fault
        if compression == _ZSTD:
            import zstandard

            try:
                with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
                    return bytes(reader.read(size))
            except zstandard.ZstdError as fault:
                raise self.damaged(f"compressed data ({fault})") from fault
        if compression == _LZO:
            return self._unpacked_lzo(packed, size)
        raise self.damaged(f"compression {compression}")

    def _unpacked_lzo(self, packed: bytes, size: int) -> bytes:
        """Return an extent of LZO: its length, then each sector with its own.

        No length stands across the border of two sectors.
        """
        (end,) = struct.unpack_from("<I", packed)
        data, at = bytearray(), 4
        while at < min(end, len(packed)) and len(data) < size:
            if (left := -at % self._sector) and left < 4:
                at += left
            (length,) = struct.unpack_from("<I", packed, at)
            at += 4
            data += lzo.unpack(packed[at : at + length], self._sector)
            at += length
        return bytes(data[:size])


def _listed(data: bytes) -> Iterator[tuple[bytes, tuple[int, int, int]]]:
    """Yield (name, key) of the entries in one directory item."""
    at = 0
    while at + 30 <= len(data):
        more, length = struct.unpack_from("<HH", data, at + 25)
        yield data[at + 30 : at + 30 + length], _KEY.unpack_from(data, at)
        at += 30 + length + more


def _piece(offset: int, data: bytes) -> _Piece:
    (unpacked,) = struct.unpack_from("<Q", data, 8)
    compression, kind = data[16], data[20]
    if kind == _INLINE:
        return _Piece(offset, unpacked, compression, data[21:], unpacked=unpacked)
    start, stored, skip, length = struct.unpack_from("<QQQQ", data, 21)
    if kind == _PREALLOCATED:
        start = 0
    return _Piece(offset, length, compression, None, start, stored, unpacked, skip)
