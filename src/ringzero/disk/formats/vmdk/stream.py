"""Writing stream-optimized extents: compressed grains appended, tables and footer at the end.

The header says that the grain directory is at the end, so that a file that
was not finished has no directory and does not open.
"""

from __future__ import annotations

import struct
import sys
import threading
import zlib
from array import array
from collections.abc import Iterable, Sequence

from ringzero.disk.contract import SECTOR, Compression
from ringzero.disk.formats.vmdk.header import (
    AT_END,
    MARK_DIRECTORY,
    MARK_END,
    MARK_FOOTER,
    MARK_TABLE,
    Header,
    marker,
)
from ringzero.disk.storage import Storage
from ringzero.disk.tables import count_units
from ringzero.disk.vectors import Buffer, flat
from ringzero.errors import DiskUnsupportedError
from ringzero.records import replace

# Tables and directories point with 32 bits at sectors.
_MAX_FILE = SECTOR << 32

# Tables and directories point with 32 bits at sectors.
_MAX_FILE = SECTOR << 32


class StreamWriter(Compression):
    """Appends grains to an extent that holds none yet; `finish` makes it a whole file."""

    only = True

    def __init__(self, storage: Storage, header: Header) -> None:
        self.storage = storage
        self.header = header
        self.unit = header.grain
        self._at = header.overhead * SECTOR
        self._entries: dict[int, array[int]] = {}
        self._lock = threading.Lock()
        self._begun = False
        # The footer that is there already belongs to the empty image.
        self._finished = True

    def pack(self, data: Buffer) -> bytes:
        view = flat(data)
        if len(view) < self.unit:
            view = memoryview(bytes(view).ljust(self.unit, b"\0"))
        return zlib.compress(view)

    def room_for(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Return by how many bytes the file grows, at most, when `ranges` are stored."""
        grains = count_units(ranges, self.unit)
        tables = count_units(ranges, self.unit * self.header.per_table)
        # zlib's compressBound(), behind the grain's sector and length.
        longest = 12 + self.unit + (self.unit >> 12) + (self.unit >> 14) + 13
        each_table = (1 - (-self.header.per_table * 4 // SECTOR)) * SECTOR
        return grains * -(-longest // SECTOR) * SECTOR + tables * each_table

    def store(self, offset: int, packed: bytes) -> None:
        with self._lock:
            number, inside = divmod(offset // self.unit, self.header.per_table)
            table = self._entries.get(number)
            if table is None:
                table = self._entries[number] = array("I", bytes(4 * self.header.per_table))
            if offset % self.unit or table[inside]:
                raise DiskUnsupportedError(
                    "a stream-optimized image takes every grain once, and whole",
                    hint="convert it to another subformat to write to it",
                )
            if self._at >= _MAX_FILE:
                raise _too_large(self.storage)
            self._begin()
            piece = struct.pack("<QI", offset // SECTOR, len(packed)) + packed
            room = -(-len(piece) // SECTOR) * SECTOR
            self.storage.write(self._at, piece.ljust(room, b"\0"))
            table[inside] = self._at // SECTOR
            self._at += room

    def _begin(self) -> None:
        if not self._begun:
            self.storage.truncate(self._at)
            self._begun = True
        self._finished = False

    def finish(self) -> None:
        """Write tables, directory, footer and the end of the stream. Not flushed."""
        with self._lock:
            if not self._finished:
                room = len(self._entries) * (self.header.per_table * 4 + SECTOR)
                if self._at + room >= _MAX_FILE:
                    raise _too_large(self.storage)
                self.storage.write(self._at, trailer(self.header, self._at, self._entries))
                self._finished = True


def _too_large(storage: Storage) -> DiskUnsupportedError:
    return DiskUnsupportedError(
        f"{storage.name}: a stream-optimized file has 2 TiB at most",
        hint="use twoGbMaxExtentSparse, or another format",
        path=storage.name,
    )


def trailer(header: Header, at: int, entries: dict[int, array[int]]) -> bytes:
    """Return what stands at the end of a stream, from the byte `at` on."""
    parts = []
    directory = array("I", bytes(4 * header.tables))
    length = -(-header.per_table * 4 // SECTOR)
    for number in sorted(entries):
        directory[number] = at // SECTOR + 1
        parts += [marker(length, MARK_TABLE), sector_numbers(entries[number])]
        at += (length + 1) * SECTOR
    length = max(1, -(-header.tables * 4 // SECTOR))
    parts += [marker(length, MARK_DIRECTORY), sector_numbers(directory)]
    footer = replace(header, directory=at // SECTOR + 1)
    parts += [marker(1, MARK_FOOTER), footer.to_bytes(), marker(0, MARK_END)]
    return b"".join(parts)


def front(header: Header) -> bytes:
    """Return the header at the front of a stream."""
    return replace(header, directory=AT_END).to_bytes()


def sector_numbers(values: Iterable[int]) -> bytes:
    """Return a grain table or directory as the image holds it, in whole sectors."""
    listed = array("I", values)
    if sys.byteorder == "big":
        listed.byteswap()
    data = listed.tobytes()
    return data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0")
