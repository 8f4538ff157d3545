"""Persistent dirty bitmaps: kept true while ringzero writes (qcow2, "Bitmaps").

A bitmap that is enabled ("auto") must record every write. It is marked "in
use" in the image before the first write, what changes is noted in memory, and
`store` adds it to the bitmap and takes the mark away. After a crash the mark
stays, and every reader knows that the bitmap cannot be trusted.
"""

from __future__ import annotations

import struct
import threading
from typing import Any

from ringzero.disk.formats.qcow2.image import Qcow2Image
from ringzero.disk.formats.qcow2.mapping import OFFSET
from ringzero.disk.tables import Table
from ringzero.errors import DiskFormatError
from ringzero.records import field, mutable_record

_ENTRY = struct.Struct(">QIIBBHI")

_IN_USE, _AUTO = 1, 2
# The only type there is: dirty tracking.
_DIRTY_TRACKING = 1
# A table entry without an offset: bit 0 says that all bits are set.
_ALL_ONES = 1

# QEMU's bounds (block/qcow2-bitmap.c).
MAX_BITMAPS = 65535
MAX_DIRECTORY = 64 << 20
MAX_TABLE_BYTES = 64 << 20


@mutable_record
class Bitmap:
    """One directory entry. `at` is its offset in the directory, `pages` what has changed."""

    at: int
    table_offset: int
    table_size: int
    flags: int
    granularity_bits: int
    kind: int
    name: str
    pages: dict[int, bytearray] = field(default_factory=dict)

    @property
    def tracks(self) -> bool:
        """Whether it has to record writes."""
        return bool(self.flags & _AUTO) and not self.flags & _IN_USE

    def describe(self) -> dict[str, Any]:
        names = [name for bit, name in ((_IN_USE, "in-use"), (_AUTO, "auto")) if self.flags & bit]
        return {"name": self.name, "granularity": 1 << self.granularity_bits, "flags": names}

    def mark(self, offset: int, length: int, page_size: int) -> None:
        """Set the bits of a guest range, in `pages` of `page_size` bytes."""
        first = offset >> self.granularity_bits
        last = (offset + length - 1) >> self.granularity_bits
        bits = page_size * 8
        while first <= last:
            number, start = divmod(first, bits)
            stop = min(last - number * bits + 1, bits)
            page = self.pages.get(number)
            if page is None:
                page = self.pages[number] = bytearray(page_size)
            _set_bits(page, start, stop)
            first = (number + 1) * bits


def _set_bits(page: bytearray, start: int, stop: int) -> None:
    """Set the bits from `start` up to `stop`; bit 0 is the lowest of byte 0."""
    low, high = start // 8, (stop - 1) // 8
    if low == high:
        page[low] |= (1 << (stop - start)) - 1 << start % 8
        return
    page[low] |= 0xFF << start % 8 & 0xFF
    page[low + 1 : high] = b"\xff" * (high - low - 1)
    page[high] |= 0xFF >> 7 - (stop - 1) % 8


class Bitmaps:
    """All bitmaps of an image."""

    def __init__(self, disk: Qcow2Image) -> None:
        self.disk = disk
        self._tracked: list[Bitmap] | None = None
        self._lock = threading.Lock()

    def read(self) -> list[Bitmap]:
        """Read the directory; DiskFormatError."""
        extension = self.disk.header.bitmaps
        if extension is None:
            return []
        size, offset = extension.directory_size, extension.directory_offset
        storage = self.disk.storage
        if (
            not 0 < extension.count <= MAX_BITMAPS
            or size > MAX_DIRECTORY
            or offset % self.disk.cluster_size
            or offset + size > storage.size
        ):
            raise self._broken("the directory is out of bounds")
        directory = storage.read(offset, size)
        found: list[Bitmap] = []
        at = 0
        for _ in range(extension.count):
            if at + _ENTRY.size > size:
                raise self._broken("the directory ends early")
            table, entries, flags, kind, granularity, name_size, extra = _ENTRY.unpack_from(
                directory, at
            )
            name_at = at + _ENTRY.size + extra
            if name_at + name_size > size or granularity > 31 or not name_size:
                raise self._broken("a directory entry makes no sense")
            if entries * 8 > MAX_TABLE_BYTES or table % self.disk.cluster_size:
                raise self._broken("a bitmap table is out of bounds")
            name = directory[name_at : name_at + name_size].decode("utf-8", "replace")
            found.append(Bitmap(at, table, entries, flags, granularity, kind, name))
            at = -(-(name_at + name_size) // 8) * 8
        return found

    def table(self, bitmap: Bitmap) -> Table:
        """Read the table of a bitmap."""
        if bitmap.table_offset + bitmap.table_size * 8 > self.disk.storage.size:
            raise self._broken("a bitmap table is behind the end of the file")
        return Table.load(
            self.disk.storage, bitmap.table_offset, bitmap.table_size, "Q", big_endian=True
        )

    def touch(self, offset: int, length: int) -> None:
        """Record that a guest range is about to change. Any thread."""
        with self._lock:
            if self._tracked is None:
                self._start()
            for bitmap in self._tracked or ():
                bitmap.mark(offset, length, self.disk.cluster_size)

    def _start(self) -> None:
        tracked = [bitmap for bitmap in self.read() if bitmap.tracks]
        for bitmap in tracked:
            if bitmap.kind != _DIRTY_TRACKING:
                raise self._broken(f"bitmap {bitmap.name!r} is of unknown type {bitmap.kind}")
            self._write_flags(bitmap, bitmap.flags | _IN_USE)
        if tracked:
            self.disk.storage.flush()
        self._tracked = tracked

    def store(self) -> None:
        """Add what has changed to the bitmaps in the image, and take their mark away."""
        with self._lock:
            tracked, self._tracked = self._tracked, None
        if not tracked:
            return
        disk = self.disk
        with disk._alloc:
            tables = [(bitmap, self._merge(bitmap)) for bitmap in tracked]
            disk._write_back()
            disk._flush_storages()
            for _, table in tables:
                table.write_back()
            disk.storage.flush()
            for bitmap in tracked:
                self._write_flags(bitmap, bitmap.flags)
            disk.storage.flush()

    def _merge(self, bitmap: Bitmap) -> Table:
        disk = self.disk
        table = self.table(bitmap)
        for number, page in bitmap.pages.items():
            if number >= bitmap.table_size:
                raise self._broken(f"bitmap {bitmap.name!r} is too short")
            entry = table.items[number]
            offset = entry & OFFSET
            if offset:
                size = disk.cluster_size
                both = int.from_bytes(page) | int.from_bytes(disk.storage.read(offset, size))
                disk.storage.write(offset, both.to_bytes(size))
            elif not entry & _ALL_ONES:
                cluster, _ = disk.refcounts.allocate(1)
                offset = cluster << disk.header.cluster_bits
                disk.storage.write(offset, page)
                table.set(number, offset)
        return table

    def _write_flags(self, bitmap: Bitmap, flags: int) -> None:
        extension = self.disk.header.bitmaps
        assert extension is not None
        # The flags follow the table's offset (8 bytes) and size (4 bytes).
        at = extension.directory_offset + bitmap.at + 12
        self.disk.storage.write(at, struct.pack(">I", flags))

    def _broken(self, why: str) -> DiskFormatError:
        name = self.disk.storage.name
        return DiskFormatError(f"{name}: bitmaps: {why}", path=name)
