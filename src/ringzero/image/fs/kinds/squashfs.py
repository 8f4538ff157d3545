"""SquashFS 4.0 (Documentation/filesystems/squashfs.rst; "The Squashfs Format" by Alejandro Baez).

Read: everything but extended attributes; packed by gzip, xz, LZMA, LZO, LZ4 or zstd.
"""

from __future__ import annotations

import lzma
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from ringzero.errors import FileSystemError
from ringzero.image.fs import lzo
from ringzero.image.fs.contract import FILE_SYSTEMS, FileSystem, Node, peek
from ringzero.image.source import Part
from ringzero.records import record
from ringzero.units import MIB

_MAGIC = b"hsqs"
_SUPERBLOCK = struct.Struct("<4sIIIIHHHHHHQQQQQQQQ")
# Metadata blocks hold 8 KiB; the upper bit of their length says that they are not packed.
_METADATA = 8192
_PLAIN_METADATA, _PLAIN_BLOCK = 1 << 15, 1 << 24
_NO_FRAGMENT = 0xFFFFFFFF
_MAX_BLOCKS = 1 << 20
# Of xz, in bytes: its dictionary is as large as a block, 1 MiB at most.
_MAX_MEMORY = 64 * MIB
_KEPT = 256
_DIRECTORY, _FILE, _LINK = 1, 2, 3
_LONG = 7
# Basic types 1 to 7, then the same with more fields.
_KINDS = (
    stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFIFO,
    stat.S_IFSOCK,
)  # fmt: skip
_GZIP, _LZMA, _LZO, _XZ, _LZ4, _ZSTD = range(1, 7)


class _Place(NamedTuple):
    """A place in a table of metadata: its block from the table's start, the byte in it."""

    block: int
    offset: int


@record
class _Detail:
    """Where the data begins; a file's block lengths, and its fragment with the offset in it."""

    start: int
    blocks: tuple[int, ...] = ()
    fragment: int = _NO_FRAGMENT
    offset: int = 0
    target: bytes = b""


@FILE_SYSTEMS.register("squashfs")
class SquashFs(FileSystem):
    name = "SquashFS"

    @classmethod
    def probe(cls, source: Part) -> bool:
        return peek(source, 0, 4) == _MAGIC

    def __init__(self, source: Part) -> None:
        super().__init__(source)
        fields = _SUPERBLOCK.unpack(source.read(0, _SUPERBLOCK.size))
        _, _, _, self._block, self._fragments, self._packing, _, _, _, major, minor = fields[:11]
        root, _, _, _, self._inodes, self._directories, self._fragment_table, _ = fields[11:]
        if (major, minor) != (4, 0):
            raise FileSystemError(
                f"the SquashFS in {source.name} is of version {major}.{minor}, 4.0 is read"
            )
        if not 4096 <= self._block <= MIB or self._block.bit_count() != 1:
            raise self.damaged(f"blocks of {self._block} bytes")
        # Metadata blocks unpacked, so that a walk does not unpack them over and over.
        self._metadata: dict[int, tuple[bytes, int]] = {}
        self._root = _Place(root >> 16, root & 0xFFFF)

    # ---- blocks -----------------------------------------------------------

    def _unpack(self, data: bytes, limit: int) -> bytes:
        """Return a block unpacked: `limit` bytes at most."""
        try:
            if self._packing == _GZIP:
                return zlib.decompressobj().decompress(data, limit)
            if self._packing in (_XZ, _LZMA):
                return lzma.LZMADecompressor(memlimit=_MAX_MEMORY).decompress(data, limit)
            if self._packing == _LZO:
                return lzo.unpack(data, limit)
            if self._packing == _LZ4:
                from lz4 import block

                return bytes(block.decompress(data, uncompressed_size=limit))
            if self._packing == _ZSTD:
                import zstandard

                with zstandard.ZstdDecompressor().stream_reader(data) as reader:
                    return bytes(reader.read(limit))
        except (zlib.error, lzma.LZMAError) as fault:
            raise self.damaged(f"packed data ({fault})") from fault
        except Exception as fault:
            # Those of lz4 and zstandard have no class in common.
            if type(fault).__module__.partition(".")[0] in ("lz4", "zstd", "zstandard", "_block"):
                raise self.damaged(f"packed data ({fault})") from fault
            raise
        raise self.damaged(f"packing {self._packing}")

    def _metadata_block(self, at: int) -> tuple[bytes, int]:
        """Return (content, place of the next one) of the metadata block at a place."""
        kept = self._metadata.get(at)
        if kept is None:
            (length,) = struct.unpack("<H", self.source.read(at, 2))
            size = length & _PLAIN_METADATA - 1
            data = self.source.read(at + 2, size)
            if not length & _PLAIN_METADATA:
                data = self._unpack(data, _METADATA)
            if len(self._metadata) >= _KEPT:
                self._metadata.clear()
            kept = self._metadata[at] = data, at + 2 + size
        return kept

    def _read_metadata(self, table: int, place: _Place, length: int) -> tuple[bytes, _Place]:
        """Return `length` bytes from a place in a table, and the place behind them."""
        at, offset = table + place.block, place.offset
        data = bytearray()
        while len(data) < length:
            block, following = self._metadata_block(at)
            piece = block[offset : offset + length - len(data)]
            if not piece and offset < len(block):
                raise self.damaged("metadata that ends too soon")
            data += piece
            offset += len(piece)
            if offset >= len(block):
                if not block:
                    raise self.damaged("an empty block of metadata")
                at, offset = following, 0
        return bytes(data), _Place(at - table, offset)

    # ---- inodes -----------------------------------------------------------

    def root(self) -> Node:
        return self.node(self._root)

    def node(self, key: _Place) -> Node:
        table = self._inodes
        head, place = self._read_metadata(table, key, 16)
        kind, mode = struct.unpack_from("<HH", head)
        basic = kind - _LONG if kind > _LONG else kind
        if not 1 <= basic <= _LONG:
            raise self.damaged(f"an inode of kind {kind}")
        mode |= _KINDS[basic - 1]
        if basic == _DIRECTORY:
            if kind == _DIRECTORY:
                data, _ = self._read_metadata(table, place, 16)
                start, _, size, offset, _ = struct.unpack("<IIHHI", data)
            else:
                data, _ = self._read_metadata(table, place, 24)
                _, size, start, _, _, offset, _ = struct.unpack("<IIIIHHI", data)
            # Three bytes of it stand for "." and "..".
            return Node(key, mode, max(0, size - 3), _Detail(start, offset=offset))
        if basic == _LINK:
            data, place = self._read_metadata(table, place, 8)
            (size,) = struct.unpack_from("<I", data, 4)
            target, _ = self._read_metadata(table, place, min(size, 65536))
            return Node(key, mode, size, _Detail(0, target=target))
        if basic == _FILE:
            return self._file_node(key, kind, mode, place)
        return Node(key, mode, 0)

    def _file_node(self, key: _Place, kind: int, mode: int, place: _Place) -> Node:
        if kind == _FILE:
            data, place = self._read_metadata(self._inodes, place, 16)
            start, fragment, offset, size = struct.unpack("<IIII", data)
        else:
            data, place = self._read_metadata(self._inodes, place, 40)
            start, size, _, _, fragment, offset, _ = struct.unpack("<QQQIIII", data)
        whole = size // self._block if fragment != _NO_FRAGMENT else -(-size // self._block)
        if whole > _MAX_BLOCKS:
            raise self.damaged(f"a file of {size} bytes")
        lengths, _ = self._read_metadata(self._inodes, place, 4 * whole)
        blocks = struct.unpack(f"<{whole}I", lengths)
        return Node(key, mode, size, _Detail(start, blocks, fragment, offset))

    def content(self, node: Node, offset: int, length: int) -> bytes:
        detail: _Detail = node.detail
        if node.is_link:
            return detail.target[offset : offset + length]
        data = bytearray(length)
        at = detail.start
        for number, stored in enumerate(detail.blocks):
            begin = number * self._block
            size = stored & _PLAIN_BLOCK - 1
            if begin + self._block > offset and begin < offset + length and size:
                block = self._data_block(at, stored, min(self._block, node.size - begin))
                _place(data, offset, begin, block)
            at += size
        begin = len(detail.blocks) * self._block
        if detail.fragment != _NO_FRAGMENT and begin < offset + length:
            block = self._fragment(detail.fragment)
            _place(data, offset, begin, block[detail.offset : detail.offset + node.size - begin])
        return bytes(data)

    def _data_block(self, at: int, stored: int, size: int) -> bytes:
        data = self.source.read(at, stored & _PLAIN_BLOCK - 1)
        return data if stored & _PLAIN_BLOCK else self._unpack(data, size)

    def _fragment(self, number: int) -> bytes:
        if number >= self._fragments:
            raise self.damaged(f"there is no fragment {number}")
        index, inside = divmod(number, 512)
        (at,) = struct.unpack("<Q", self.source.read(self._fragment_table + 8 * index, 8))
        data, _ = self._read_metadata(at, _Place(0, 16 * inside), 16)
        start, stored, _ = struct.unpack("<QII", data)
        return self._data_block(start, stored, self._block)

    # ---- directories ------------------------------------------------------

    def entries(self, directory: Node) -> Iterator[tuple[bytes, _Place]]:
        place, left = _Place(directory.detail.start, directory.detail.offset), directory.size
        while left >= 12:
            head, place = self._read_metadata(self._directories, place, 12)
            count, block, _ = struct.unpack("<III", head)
            left -= 12
            if count > 255:
                raise self.damaged("a directory of no valid form")
            for _ in range(count + 1):
                entry, place = self._read_metadata(self._directories, place, 8)
                offset, _, _, length = struct.unpack("<HhHH", entry)
                if length > 255:
                    raise self.damaged("a name that is too long")
                name, place = self._read_metadata(self._directories, place, length + 1)
                left -= 8 + length + 1
                yield name, _Place(block, offset)


def _place(data: bytearray, offset: int, begin: int, block: bytes) -> None:
    """Put what a file has from `begin` on where it belongs in `data`, which begins at `offset`."""
    first, last = max(offset, begin), min(offset + len(data), begin + len(block))
    if first < last:
        data[first - offset : last - offset] = block[first - begin : last - begin]
