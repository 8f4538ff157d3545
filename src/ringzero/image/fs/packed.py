"""EROFS' compressed files: where each piece of a file lies, packed; no I/O.

fs/erofs/erofs_fs.h and fs/erofs/zmap.c of Linux 6.1. A file is cut into logical clusters
(lclusters); each has an entry in the file's index, which says whether a piece begins in it and at
which byte, or how far back the last one began. A piece is unpacked from one physical cluster
(pcluster) of one block or, with "big pclusters", of several.

    header = Header.read(data)
    for piece in pieces(header, full, index, base, size, cluster): ...
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ringzero.records import record

# struct z_erofs_map_header, and what an index of full entries has behind it for padding.
HEADER = 8
_PADDING = 8
# h_advise: entries of two bytes, pclusters of several blocks (for each of two heads), the last
# piece behind the index, plain pieces rotated, the last piece in a file of all last pieces.
_TWO_BYTES, _BIG, _BIG_2, _INLINE, _ROTATED, _FRAGMENT = (1 << n for n in range(6))
# di_advise, or the upper bits of a compact entry: what an lcluster holds.
PLAIN, HEAD, NEXT, HEAD_2 = range(4)
# h_clusterbits: all of the file lies in that file of last pieces.
_ALL_FRAGMENT = 1 << 7
# di_advise, above what an lcluster holds: the piece has more bytes than this file takes of it.
_PARTIAL = 1 << 15
# Of an lcluster without a beginning, the one behind a beginning: how many blocks the pcluster has.
_BLOCKS = 1 << 11
# Compact entries come in packs: of two in 8 bytes, of 16 in 32, with the number of a block behind.
_PACK_4, _PACK_2 = 2, 16
# mkfs.erofs makes pieces of 4 MB and pclusters of 1 MiB at most, bytes.
MAX_PIECE = 16 << 20
_FULL = struct.Struct("<HHI")


class BadIndexError(ValueError):
    """An index that says what cannot be."""


@record
class Header:
    """z_erofs_map_header: `algorithms` by head, `bits` of an lcluster above those of a block.

    `fragment` is where in the file of fragments this one's last piece lies, or, with `whole`, all
    of it; None where there is none. Of an index of full entries these are the lower 32 bits.
    """

    inline: int
    advise: int
    algorithms: tuple[int, int]
    bits: int
    fragment: int | None
    whole: bool

    @classmethod
    def read(cls, data: bytes) -> Header:
        """Return the header in 8 bytes."""
        _, inline, advise, algorithms, bits = struct.unpack("<HHHBB", data)
        if bits & _ALL_FRAGMENT:
            # Nothing else is told then: the other 63 bits are a number.
            place = int.from_bytes(data, "little") & ~(_ALL_FRAGMENT << 56)
            return cls(0, 0, (0, 0), 0, place, whole=True)
        return cls(
            inline if advise & _INLINE else 0,
            advise,
            (algorithms & 0xF, algorithms >> 4),
            bits & 7,
            int.from_bytes(data[:4], "little") if advise & _FRAGMENT else None,
            whole=False,
        )

    @property
    def rotated(self) -> bool:
        """Whether plain pieces begin in their block where they begin in their lcluster."""
        return bool(self.advise & _ROTATED)

    def big(self, kind: int) -> bool:
        """Whether the pclusters of a kind of head may have several blocks."""
        return bool(self.advise & (_BIG_2 if kind == HEAD_2 else _BIG) and kind != PLAIN)


class Piece(NamedTuple):
    """`length` bytes of a file from `offset` on, unpacked from `blocks` of them from `block` on.

    `partial`: more bytes are packed there, for other files.
    """

    offset: int
    length: int
    kind: int
    block: int
    blocks: int
    partial: bool


class _Entry(NamedTuple):
    """An lcluster: `value` is where in it a piece begins, or the distance to where one did."""

    kind: int
    value: int
    block: int
    partial: bool = False


def index_end(header: Header, full: bool, base: int, clusters: int) -> int:
    """Return where an index ends that begins at `base`, behind its header."""
    if full:
        return base + _PADDING + _FULL.size * clusters
    at = base
    for size, length, count in _packs(header, base, clusters):
        # Whole packs.
        at += size * length * -(-count // length)
    return at


def pieces(
    header: Header, full: bool, index: bytes, base: int, size: int, cluster: int
) -> Iterator[Piece]:
    """Yield the pieces of a file of `size` bytes, in order; raises BadIndexError.

    `index` is what lies from the address `base` on; `full` tells which form it has. `cluster` is
    the size of an lcluster in bytes.
    """
    clusters = -(-size // cluster)
    found = _full(index, clusters) if full else _compact(header, index, base, clusters, cluster)
    begun: tuple[int, _Entry, int] | None = None
    count = 0
    for number, entry in enumerate(found):
        if entry.kind == NEXT:
            if begun is None:
                raise BadIndexError("a file that begins in the middle of a piece")
            if entry.value & _BLOCKS and header.big(begun[1].kind) and number == begun[2] + 1:
                count = entry.value & _BLOCKS - 1
            continue
        offset = number * cluster + entry.value
        if entry.value >= cluster or (begun is None and offset):
            raise BadIndexError("a piece that begins elsewhere")
        if offset == size:
            # mkfs.erofs marks the end so.
            break
        if begun is not None:
            yield _piece(begun, offset, count)
        begun, count = (offset, entry, number), 0
    if begun is not None:
        yield _piece(begun, size, count)


def _piece(begun: tuple[int, _Entry, int], end: int, count: int) -> Piece:
    offset, entry, _ = begun
    if not 0 < end - offset <= MAX_PIECE:
        raise BadIndexError(f"a piece of {end - offset} bytes")
    return Piece(offset, end - offset, entry.kind, entry.block, count, entry.partial)


def _full(index: bytes, clusters: int) -> Iterator[_Entry]:
    """Yield the entries of 8 bytes each (struct z_erofs_vle_decompressed_index)."""
    for number in range(clusters):
        advise, offset, rest = _FULL.unpack_from(index, _PADDING + _FULL.size * number)
        kind = advise & 3
        value = rest & 0xFFFF if kind == NEXT else offset
        yield _Entry(kind, value, rest, bool(kind != NEXT and advise & _PARTIAL))


def _packs(header: Header, base: int, clusters: int) -> list[tuple[int, int, int]]:
    """Return (bytes of an entry, entries of a pack, entries) of the three parts of an index."""
    # Up to a border of 32 bytes, and at the end, entries have four bytes.
    first = min((32 - base % 32) // 4 % 8, clusters)
    middle = 0
    if header.advise & _TWO_BYTES and first < clusters:
        middle = (clusters - first) // _PACK_2 * _PACK_2
    last = clusters - first - middle
    return [(4, _PACK_4, first), (2, _PACK_2, middle), (4, _PACK_4, last)]


def _compact(
    header: Header, index: bytes, base: int, clusters: int, cluster: int
) -> Iterator[_Entry]:
    """Yield the entries of an index in packs."""
    bits = max((cluster - 1).bit_length(), _BLOCKS.bit_length())
    at = 0
    for size, length, count in _packs(header, base, clusters):
        for begin in range(0, count, length):
            pack = index[at + begin * size : at + (begin + length) * size]
            yield from _pack(header, pack.ljust(size * length, b"\0"), size, bits, count - begin)
        at += size * count


def _pack(header: Header, pack: bytes, size: int, bits: int, count: int) -> Iterator[_Entry]:
    """Yield the entries of one pack, `count` at most.

    The number behind them is that of the first block that begins in it, or before it.
    """
    length = len(pack) // size
    width = 8 * (len(pack) - 4) // length
    whole = int.from_bytes(pack[:-4], "little")
    block = int.from_bytes(pack[-4:], "little")
    mask = (1 << bits) - 1
    raw = [whole >> width * n for n in range(length)]
    entries = [(value >> bits & 3, value & mask) for value in raw]
    blocks = _before(entries, header.big(HEAD))
    for n, (kind, value) in enumerate(entries[:count]):
        # The last one says how far the next piece is, not the last.
        distance = kind == NEXT and n + 1 == length and not value & _BLOCKS
        yield _Entry(kind, 1 if distance else value, block + blocks[n])


def _before(entries: list[tuple[int, int]], big: bool) -> list[int]:
    """Return for each entry how many blocks lie between the pack's number and its own."""
    found = []
    for n in range(len(entries)):
        if not big:
            total, at = 1, n
            while at > 0:
                at -= 1
                if entries[at][0] == NEXT:
                    at -= entries[at][1]
                if at >= 0:
                    total += 1
        else:
            total, at = 0, n
            while at > 0:
                at -= 1
                kind, value = entries[at]
                if kind != NEXT:
                    total += 1
                elif value & _BLOCKS:
                    at -= 1
                    total += value & _BLOCKS - 1
                else:
                    at -= max(value - 2, 0)
        found.append(total)
    return found


def lz4_end(block: bytes, length: int) -> int:
    """Return where the LZ4 block at the beginning of `block` ends, which unpacks to `length` bytes.

    lz4_Block_format.md: sequences of literals and a match, the last one without a match. Raises
    BadIndexError.
    """
    at = done = 0
    try:
        while True:
            token = block[at]
            count, at = _lz4_length(block, at + 1, token >> 4)
            at += count
            done += count
            if done >= length:
                return at
            count, at = _lz4_length(block, at + 2, token & 15)
            # A match has four bytes at least.
            done += count + 4
            if done >= length:
                # No block ends in a match, but one may be cut there.
                return at
    except IndexError:
        raise BadIndexError("packed data that is cut short") from None


def _lz4_length(block: bytes, at: int, value: int) -> tuple[int, int]:
    """Return a length of four bits, or more where they are all set, and where it ends."""
    if value == 15:
        while True:
            more = block[at]
            at += 1
            value += more
            if more != 255:
                break
    return value, at
