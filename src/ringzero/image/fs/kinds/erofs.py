"""EROFS (Documentation/filesystems/erofs.rst of the Linux source).

Read: compact and extended inodes, flat and inline data, chunks on the device itself, compressed
files (`ringzero.image.fs.packed`, `erofspack`), whose last pieces may lie in one file of fragments,
and whose pieces may be shared. Further devices are told.
"""

from __future__ import annotations

import stat
import struct
from bisect import bisect_right
from collections.abc import Iterator

from ringzero.errors import FileSystemError
from ringzero.image.fs import erofspack, packed, xattrs
from ringzero.image.fs.contract import (
    FILE_SYSTEMS,
    MAX_DIRECTORY,
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
_MAGIC = 0xE0F5E1E2
_SLOT = 32
# Incompatible features: zeros before what is packed, pclusters of several blocks, chunked files,
# the last piece of a file behind its inode, fragments and shared pieces. With the second bit,
# packings are described, too, which the packed data does itself.
_ZERO_PADDING, _BIG_CLUSTERS, _CHUNKED, _PACKED_TAILS = 1 << 0, 1 << 1, 1 << 2, 1 << 4
_FRAGMENTS = 1 << 5
_READABLE = _ZERO_PADDING | _BIG_CLUSTERS | _CHUNKED | _PACKED_TAILS | _FRAGMENTS
# Z_EROFS_PCLUSTER_MAX_SIZE, bytes: of a pcluster that several files share, no more is known.
_MAX_SHARED = 1 << 20
# Pieces of the file of fragments that are kept unpacked: small files lie side by side in them.
_KEPT = 4
_FLAT, _PACKED_FULL, _INLINE, _PACKED_COMPACT, _CHUNKS = range(5)
_CHUNK_INDEXES = 1 << 5
_NO_BLOCK = 0xFFFFFFFF
# erofs_xattr_ibody_header, and an entry: lengths of name and value, the name's beginning.
_XATTR_HEADER, _XATTR_ENTRY = 12, struct.Struct("<BBH")


@record
class _Detail:
    layout: int
    # Where inode and attributes end: inline data and indices follow.
    tail: int
    # The first block, or the chunks' format, or a device's number.
    place: int
    owner: tuple[int, int] = (0, 0)
    # In seconds; None: that of the whole file system.
    mtime: int | None = None
    # Where the attributes begin.
    xattrs: int = 0


@record
class _Index:
    """A compressed file's index: what lies from `base` to `end`, by lclusters of `cluster` bytes.

    `full` tells its form, `size` is the file's.
    """

    header: packed.Header
    full: bool
    base: int
    end: int
    cluster: int
    size: int


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
        (self._built,) = struct.unpack_from("<Q", head, 24)
        self._metadata, self._shared_xattrs = struct.unpack_from("<II", head, 40)
        self.uuid = uuid_text(head[48:64])
        self.label = head[64:80].partition(b"\0")[0].decode("utf-8", "replace")
        (features,) = struct.unpack_from("<I", head, 80)
        self._features = features
        (self._fragments,) = struct.unpack_from("<Q", head, 96)
        # Of the file of fragments, once it was needed.
        self._shared: tuple[_Index, list[packed.Piece]] | None = None
        self._unpacked_last: dict[int, bytes] = {}
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
        mtime = None
        if extended:
            raw = self.source.read(at, 64)
            (size,) = struct.unpack_from("<Q", raw, 8)
            uid, gid, mtime = struct.unpack_from("<IIq", raw, 24)
        else:
            (size,) = struct.unpack_from("<I", raw, 8)
            uid, gid = struct.unpack_from("<HH", raw, 24)
        (place,) = struct.unpack_from("<I", raw, 16)
        begin = at + (64 if extended else 32)
        tail = begin + (12 + 4 * (attributes - 1) if attributes else 0)
        return Node(key, mode, size, _Detail(form >> 1 & 7, tail, place, (uid, gid), mtime, begin))

    def attributes_of(self, node: Node) -> Attributes:
        detail: _Detail = node.detail
        is_device = stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode)
        mtime = self._built if detail.mtime is None else detail.mtime
        device = xattrs.device(detail.place) if is_device else (0, 0)
        return Attributes(*detail.owner, mtime, device, self._xattrs(detail) or None)

    def _xattrs(self, detail: _Detail) -> dict[bytes, bytes]:
        """Return attributes that stand behind an inode, and those that it shares with others."""
        if detail.tail == detail.xattrs:
            return {}
        data = self.source.read(detail.xattrs, detail.tail - detail.xattrs)
        count = data[4]
        found: dict[bytes, bytes] = {}
        shared = struct.unpack_from(f"<{count}I", data, _XATTR_HEADER)
        at = _XATTR_HEADER + 4 * count
        while at + _XATTR_ENTRY.size <= len(data):
            length, index, size = _XATTR_ENTRY.unpack_from(data, at)
            if not (length or index or size):
                break
            _enter(found, data, at)
            at += _XATTR_ENTRY.size + length + size + 3 & ~3
        for number in shared:
            place = self._shared_xattrs * self._block + 4 * number
            head = self.source.read(place, _XATTR_ENTRY.size)
            length, _, size = _XATTR_ENTRY.unpack(head)
            _enter(found, self.source.read(place, _XATTR_ENTRY.size + length + size), 0)
        return found

    def content(self, node: Node, offset: int, length: int) -> bytes:
        if node.detail.layout in (_PACKED_FULL, _PACKED_COMPACT):
            return self._packed(node, offset, length)
        return super().content(node, offset, length)

    def _packed(self, node: Node, offset: int, length: int) -> bytes:
        """Return bytes of a compressed file."""
        index = self._index(node)
        header = index.header
        if header.whole:
            return self._fragment(header.fragment or 0, offset, length)
        data = bytearray(length)
        for piece in self._pieces(index):
            if piece.offset >= offset + length:
                break
            if piece.offset + piece.length <= offset:
                continue
            end = piece.offset + piece.length
            first, stop = max(offset, piece.offset), min(offset + length, end)
            if header.fragment is not None and end == index.size:
                high = piece.block << 32 if index.full else 0
                found = self._fragment(high | header.fragment, first - piece.offset, stop - first)
            else:
                found = self._whole(index, piece)[first - piece.offset : stop - piece.offset]
            data[first - offset : stop - offset] = found
        return bytes(data)

    def _index(self, node: Node) -> _Index:
        full = node.detail.layout == _PACKED_FULL
        at = -(-node.detail.tail // packed.HEADER) * packed.HEADER
        header = packed.Header.read(self.source.read(at, packed.HEADER))
        if full and not self._features & (_BIG_CLUSTERS | _PACKED_TAILS | _FRAGMENTS):
            # Before these there was no header, but zeros or what was left there.
            header = packed.Header.read(bytes(packed.HEADER))
        base, cluster = at + packed.HEADER, self._block << header.bits
        clusters = -(-node.size // cluster)
        if clusters > MAX_EXTENTS:
            raise self.damaged(f"a file of {clusters} clusters")
        end = packed.index_end(header, full, base, clusters)
        return _Index(header, full, base, end, cluster, node.size)

    def _pieces(self, index: _Index) -> Iterator[packed.Piece]:
        data = self.source.read(index.base, index.end - index.base)
        place = index.base, index.size, index.cluster
        return packed.pieces(index.header, index.full, data, *place)

    def _whole(self, index: _Index, piece: packed.Piece) -> bytes:
        """Return what a piece unpacks to."""
        header, cluster = index.header, index.cluster
        if piece.offset + piece.length == index.size and header.inline:
            raw = self.source.read(index.end, header.inline)
        else:
            count = piece.blocks * self._block or cluster
            if count > (_MAX_SHARED if piece.partial else piece.length + 2 * cluster):
                # What is packed takes no more room than what it unpacks to.
                raise self.damaged(f"{count} bytes that unpack to {piece.length}")
            raw = self.source.read(piece.block * self._block, count)
        return self._unpacked(header, piece, raw, cluster)

    def _fragment(self, place: int, offset: int, length: int) -> bytes:
        """Return bytes of what begins at `place` in the file of fragments."""
        node = self.node(self._fragments)
        begin = place + offset
        if not self._fragments or begin + length > node.size:
            raise self.damaged("a fragment that lies nowhere")
        if node.detail.layout not in (_PACKED_FULL, _PACKED_COMPACT):
            return super().content(node, begin, length)
        if self._shared is None:
            index = self._index(node)
            if index.header.fragment is not None:
                raise self.damaged("fragments that lie in fragments")
            self._shared = index, list(self._pieces(index))
        index, pieces = self._shared
        data = bytearray()
        at = max(bisect_right(pieces, begin, key=lambda piece: piece.offset) - 1, 0)
        for piece in pieces[at:]:
            if len(data) == length:
                break
            whole = self._unpacked_last.pop(piece.offset, None)
            if whole is None:
                whole = self._whole(index, piece)
            self._unpacked_last[piece.offset] = whole
            if len(self._unpacked_last) > _KEPT:
                del self._unpacked_last[next(iter(self._unpacked_last))]
            skip = begin + len(data) - piece.offset
            data += whole[skip : skip + length - len(data)]
        if len(data) < length:
            raise self.damaged("a fragment that ends too soon")
        return bytes(data)

    def _unpacked(
        self, header: packed.Header, piece: packed.Piece, raw: bytes, cluster: int
    ) -> bytes:
        if piece.kind == packed.PLAIN:
            if piece.length > len(raw):
                raise self.damaged("a plain piece that is longer than its block")
            begin = piece.offset % cluster if header.rotated else 0
            return (raw[begin:] + raw[:begin])[: piece.length]
        algorithm = header.algorithms[piece.kind == packed.HEAD_2]
        if algorithm >= len(erofspack.NAMES):
            known = ", ".join(erofspack.NAMES)
            raise FileSystemError(
                f"a file of {self.source.name} is packed in a way of EROFS that ringzero does not "
                f"know: {algorithm}",
                hint=f"mkfs.erofs -zlz4hc makes images that can be read; so do {known}",
            )
        if self._features & _ZERO_PADDING:
            raw = raw.lstrip(b"\0")
        elif algorithm == erofspack.LZ4:
            # Before Linux 5.4 what is packed came first in its block.
            raw = raw[: packed.lz4_end(raw, piece.length)]
        try:
            return erofspack.unpack(algorithm, raw, piece.length)
        except erofspack.BadPackError as fault:
            name = erofspack.NAMES[algorithm]
            raise self.damaged(f"data packed by {name} ({fault})") from fault

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
        if directory.size > MAX_DIRECTORY:
            raise self.damaged(f"a directory of {directory.size} bytes")
        whole = self.content(directory, 0, directory.size)
        for at in range(0, directory.size, self._block):
            data = whole[at : at + self._block]
            length = len(data)
            (first,) = struct.unpack_from("<H", data, 8)
            count = first // 12
            if not 0 < count <= length // 12:
                raise self.damaged("a directory of no valid form")
            starts = [struct.unpack_from("<QH", data, 12 * n) for n in range(count)]
            for n, (inode, begin) in enumerate(starts):
                end = starts[n + 1][1] if n + 1 < count else length
                yield data[begin:end].partition(b"\0")[0], inode


def _enter(found: dict[bytes, bytes], data: bytes, at: int) -> None:
    """Enter the attribute whose entry is at `at`, where its name is known."""
    length, index, size = _XATTR_ENTRY.unpack_from(data, at)
    begin = at + _XATTR_ENTRY.size
    name = xattrs.full_name(index, data[begin : begin + length])
    if name is not None:
        found[name] = data[begin + length : begin + length + size]
