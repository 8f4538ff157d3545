"""EROFS (Documentation/filesystems/erofs.rst of the Linux source), but for compressed files.

Read: compact and extended inodes, flat and inline data, chunks on the device itself. Compressed
files and those on further devices are told.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ringzero.errors import FileSystemError
from ringzero.image.fs.contract import (
    FILE_SYSTEMS,
    MAX_EXTENTS,
    Extent,
    ExtentFileSystem,
    Node,
    peek,
    uuid_text,
)
from ringzero.image.source import Part
from ringzero.records import record

_SUPERBLOCK = 1024
_MAGIC = 0xE0F5E1E2
_SLOT = 32
# Incompatible features: zero padding at a packed block's head, chunked files.
_ZERO_PADDING, _CHUNKED = 1 << 0, 1 << 2
_READABLE = _ZERO_PADDING | _CHUNKED
_FLAT, _PACKED_FULL, _INLINE, _PACKED_COMPACT, _CHUNKS = range(5)
_CHUNK_INDEXES = 1 << 5
_NO_BLOCK = 0xFFFFFFFF


@record
class _Detail:
    layout: int
    # Where inode and attributes end: inline data and indices follow.
    tail: int
    # The first block, or the chunks' format.
    place: int


@FILE_SYSTEMS.register("erofs")
class Erofs(ExtentFileSystem):
    name = "EROFS"

    @classmethod
    def probe(cls, source: Part) -> bool:
        return peek(source, _SUPERBLOCK, 4) == _MAGIC.to_bytes(4, "little")

    def __init__(self, source: Part) -> None:
        super().__init__(source)
        head = source.read(_SUPERBLOCK, 128)
        bits = head[12]
        if not 9 <= bits <= 16:
            raise self.damaged(f"blocks of 2^{bits} bytes")
        self._bits, self._block = bits, 1 << bits
        (self._root,) = struct.unpack_from("<H", head, 14)
        (self._metadata,) = struct.unpack_from("<I", head, 40)
        self.uuid = uuid_text(head[48:64])
        self.label = head[64:80].partition(b"\0")[0].decode("utf-8", "replace")
        (features,) = struct.unpack_from("<I", head, 80)
        if features & ~_READABLE:
            raise FileSystemError(
                f"the EROFS in {source.name} has features that ringzero does not read: "
                f"{features & ~_READABLE:#x}"
            )

    def root(self) -> Node:
        return self.node(self._root)

    def node(self, key: int) -> Node:
        at = self._metadata * self._block + key * _SLOT
        raw = self.source.read(at, 32)
        form, attributes, mode = struct.unpack_from("<HHH", raw)
        extended = form & 1
        if extended:
            raw = self.source.read(at, 64)
            (size,) = struct.unpack_from("<Q", raw, 8)
        else:
            (size,) = struct.unpack_from("<I", raw, 8)
        (place,) = struct.unpack_from("<I", raw, 16)
        tail = at + (64 if extended else 32) + (12 + 4 * (attributes - 1) if attributes else 0)
        return Node(key, mode, size, _Detail(form >> 1 & 7, tail, place))

    def content(self, node: Node, offset: int, length: int) -> bytes:
        if node.detail.layout in (_PACKED_FULL, _PACKED_COMPACT):
            raise FileSystemError(
                f"a file of {self.source.name} is compressed, which ringzero does not read in EROFS"
            )
        return super().content(node, offset, length)

    def extents(self, node: Node) -> list[Extent]:
        detail: _Detail = node.detail
        if detail.layout == _FLAT:
            return [Extent(0, node.size, detail.place * self._block)]
        if detail.layout == _INLINE:
            whole = node.size - node.size % self._block
            if whole == node.size and whole:
                whole -= self._block
            head = [Extent(0, whole, detail.place * self._block)] if whole else []
            return [*head, Extent(whole, node.size - whole, detail.tail)]
        if detail.layout == _CHUNKS:
            return self._chunks(node)
        raise self.damaged(f"data layout {detail.layout}")

    def _chunks(self, node: Node) -> list[Extent]:
        form = node.detail.place
        size = self._block << (form & 0x1F)
        count = -(-node.size // size)
        if count > MAX_EXTENTS:
            raise self.damaged(f"a file of {count} chunks")
        width = 8 if form & _CHUNK_INDEXES else 4
        at = -(-node.detail.tail // width) * width
        data = self.source.read(at, count * width)
        found = []
        for n in range(count):
            (block,) = struct.unpack_from("<I", data, n * width + width - 4)
            if width == 8 and struct.unpack_from("<H", data, n * 8 + 2)[0]:
                raise FileSystemError(f"a file of {self.source.name} lies on another device")
            start = None if block == _NO_BLOCK else block * self._block
            found.append(Extent(n * size, min(size, node.size - n * size), start))
        return found

    def entries(self, directory: Node) -> Iterator[tuple[bytes, int]]:
        for at in range(0, directory.size, self._block):
            length = min(self._block, directory.size - at)
            data = self.content(directory, at, length)
            (first,) = struct.unpack_from("<H", data, 8)
            count = first // 12
            if not 0 < count <= length // 12:
                raise self.damaged("a directory of no valid form")
            starts = [struct.unpack_from("<QH", data, 12 * n) for n in range(count)]
            for n, (inode, begin) in enumerate(starts):
                end = starts[n + 1][1] if n + 1 < count else length
                yield data[begin:end].partition(b"\0")[0], inode
