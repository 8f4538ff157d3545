"""The parts of a VMDK disk: sparse extents with grain tables, flat files, and nothing at all.

Each is a `Disk` of its own; `VmdkDisk` puts them in a row.
"""

from __future__ import annotations

import struct
import threading
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, Self

from ringzero.disk.batch import Checked
from ringzero.disk.contract import (
    SECTOR,
    Disk,
    DiskInfo,
    Kind,
    Run,
    Sample,
    Surroundings,
)
from ringzero.disk.formats.vmdk.header import MARKERS, REDUNDANT, ZERO_GRAINS, Header
from ringzero.disk.formats.vmdk.layout import Layout
from ringzero.disk.formats.vmdk.stream import sector_numbers
from ringzero.disk.gaps import gaps
from ringzero.disk.mapped import SPOT_ABSENT, MappedDisk
from ringzero.disk.paged import PagedTable
from ringzero.disk.storage import Storage
from ringzero.disk.tables import Table, count_units, units_of
from ringzero.disk.vectors import Views, fill, fill_zeroes
from ringzero.errors import DiskFormatError, DiskReadOnlyError, DiskUnsupportedError

# Grain tables kept in memory; 512 entries of 4 bytes each, for 32 MiB of disk.
_TABLES_KEPT = 4096
_ZERO_GRAIN = 1
# Grain tables point with 32 bits at sectors.
_MAX_FILE = SECTOR << 32
_UNPACKED_KEPT = 32
# How much of a file may be holes before they are looked for.
_HOLLOW = 16 << 20
# 1 PiB of disk, far more than 32 bits of sectors can hold: what an image may make us look through.
_MAX_TABLES = 32 << 20


class Part(Disk):
    """What all extents have in common: they are opened by their disk alone."""

    format = "vmdk"

    @classmethod
    def probe(cls, sample: Sample) -> int:
        return 0

    @classmethod
    def open(cls, storage: Storage, around: Surroundings) -> Self:
        raise NotImplementedError("an extent is opened by its disk")

    def info(self) -> DiskInfo:
        raise NotImplementedError("an extent is described by its disk")


class FlatExtent(Part):
    """`size` bytes of a file from the byte `start` on."""

    def __init__(self, storage: Storage, start: int, size: int, *, read_only: bool) -> None:
        if start + size > storage.size:
            raise DiskFormatError(
                f"{storage.name} is shorter than the descriptor says", path=storage.name
            )
        self.storage = storage
        self.start = start
        self.path = None
        self.read_only = read_only
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def allocated(self) -> int:
        return self.storage.allocated()

    def stretch(self, size: int) -> None:
        """Make it longer, durably."""
        self.storage.reach(self.start + size)
        self.storage.flush()
        self._size = size

    def cut(self, size: int) -> None:
        """Make it shorter; nothing refers to the rest any more."""
        self._size = size
        self.storage.truncate(self.start + size)

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        at = self.start + offset
        for run, has_data in self.storage.extents(at, length):
            yield Run(run, Kind.DATA if has_data else Kind.ZERO, at, self.storage, True)
            at += run

    def _read(self, offset: int, views: Views) -> None:
        self.storage.read_into(self.start + offset, views)

    def _read_ready(self, requests: Sequence[Checked]) -> list[Checked]:
        read_cached, start = self.storage.read_cached, self.start
        return [(at, views) for at, views in requests if not read_cached(start + at, views)]

    def _announce(self, offset: int, length: int) -> None:
        self.storage.announce(self.start + offset, length)

    def _write(self, offset: int, views: Views) -> None:
        self.storage.write(self.start + offset, views)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.storage.write_zeroes(self.start + offset, length, keep_space=not unmap)

    def _discard(self, offset: int, length: int) -> None:
        # A host's discard may leave anything; here it must be zero or as before.
        self.storage.write_zeroes(self.start + offset, length)

    def _flush(self) -> None:
        self.storage.flush()

    def _close(self) -> None:
        self.storage.close()


class ZeroExtent(Part):
    """`size` bytes that read as zeroes and take no others."""

    def __init__(self, size: int) -> None:
        self.path = None
        self.read_only = True
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def allocated(self) -> int:
        return 0

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        yield Run(length, Kind.ZERO)

    def _read(self, offset: int, views: Views) -> None:
        fill_zeroes(views)

    def _write(self, offset: int, views: Views) -> None:
        self._refuse()

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """They are zeroes already."""

    def _discard(self, offset: int, length: int) -> None:
        """There is nothing to discard."""

    def _flush(self) -> None:
        """Nothing is ever written."""

    def _close(self) -> None:
        """Nothing is open."""

    def _refuse(self) -> NoReturn:
        raise DiskReadOnlyError("this part of the disk is a ZERO extent and cannot be written")


class SparseExtent(Part, MappedDisk):
    """A grain directory, its grain tables, and the grains, which are the clusters."""

    can_have_backing = True

    def __init__(self, storage: Storage, header: Header, *, read_only: bool) -> None:
        super().__init__(storage)
        self.header = header
        self.path = None
        self.read_only = read_only
        self._size = header.capacity
        self._grain = header.grain
        self._span = header.per_table * header.grain
        self.zero_grains = bool(header.flags & ZERO_GRAINS)
        # Compressed extents are read as MARKED grains; without markers there is no length.
        if header.compressed and not header.flags & MARKERS:
            raise DiskUnsupportedError(
                f"{storage.name}: compressed grains without markers", path=storage.name
            )
        self.directory: PagedTable
        self.redundant: PagedTable | None
        self._layout: Layout | None
        self._load_directories()
        # Entries of tables in memory whose grains lie over structures.
        self._unsafe: set[int] = set()
        self._tables: dict[int, Table] = {}
        self._dirty: set[int] = set()
        # Tables that are not in the file yet: they must be, before the directory names them.
        self._new: set[int] = set()
        # Host offsets, as in `BlockDisk`.
        self._forgotten: list[int] = []
        self._settling: list[int] = []
        self._free: list[int] = []
        # Space that was nobody's when this session needed the first grain; not zeroed yet.
        self._unused: list[int] | None = None
        self._unpacked: dict[int, bytes] = {}
        self._unpacked_lock = threading.Lock()

    def limit(self, size: int) -> None:
        """Use only the first `size` bytes."""
        self._size = size

    def stretch(self, size: int) -> None:
        """Make it longer, durably, with a longer directory where that is needed."""
        header = self.header
        with self._gate.alone(), self._alloc:
            self._write_back()
            self.storage.flush()
            before = header.tables
            header.capacity = size
            if header.tables > before:
                self._move_directories(before)
            # Where the directories are, and how long, changes with one sector.
            self.storage.write(0, header.to_bytes())
            self.storage.flush()
            self._size = size
            self._load_directories()

    def _move_directories(self, known: int) -> None:
        """Write longer directories, with empty tables, to the end; durable when it returns."""
        header, storage = self.header, self.storage
        table = -(-header.per_table * 4 // SECTOR)
        fresh = header.tables - known
        directory = -(-header.tables * 4 // SECTOR)
        at = -(-storage.size // SECTOR)
        for old in (self.redundant, self.directory):
            if old is None:
                continue
            first = at + directory
            end = first + fresh * table
            self._check_end(end * SECTOR)
            storage.truncate(end * SECTOR)
            sectors = array("I", [old[number] for number in range(known)])
            sectors.extend(range(first, end, table))
            storage.write(at * SECTOR, sector_numbers(sectors))
            if old is self.directory:
                header.directory = at
            else:
                header.redundant = at
            at = end
        storage.flush()

    def cut(self, size: int) -> None:
        """Make it shorter; the descriptor says so already."""
        header = self.header
        with self._gate.alone(), self._alloc:
            self._size = size
            first = -(-size // self._grain)
            count = -(-header.capacity // self._grain) - first
            self._clear_entries(first, count, 0)
            self._write_back()
            self.storage.flush()
            before = header.tables
            header.capacity = size
            self.storage.write(0, header.to_bytes())
            self.storage.flush()
            self._drop_tables(header.tables, before)
            self._tables = {n: t for n, t in self._tables.items() if n < header.tables}
            self._load_directories()

    def _drop_tables(self, first: int, end: int) -> None:
        """Give back the space of empty tables that the directory no longer reaches."""
        room = -(-4 * self.header.per_table // SECTOR)
        for directory in (self.directory, self.redundant):
            numbers = range(first, end) if directory is not None else ()
            sectors = sorted(directory[number] for number in numbers)  # type: ignore[index]
            start = at = 0
            for sector in [*sectors, 0]:
                if at and sector != at:
                    self.storage.write_zeroes(start * SECTOR, (at - start) * SECTOR)
                if sector != at:
                    start = sector
                at = sector + room if sector else 0

    def forget_all(self) -> None:
        """Make all grains absent."""
        with self._gate.alone(), self._alloc:
            for number in range(self.header.tables):
                if self._table(number) is not None:
                    table = self._table_to_change(number)
                    self._forget(table.items)
                    table.fill(0, array("I", bytes(4 * len(table.items))))

    def _load_directories(self) -> None:
        header = self.header
        self.directory = self._load_directory(header.directory)
        self.redundant = None
        if header.flags & REDUNDANT and header.redundant not in (0, header.directory):
            try:
                self.redundant = self._load_directory(header.redundant)
            except DiskFormatError:
                # Reading does without.
                if not self.read_only:
                    raise
        self._layout = None

    def _load_directory(self, sector: int) -> PagedTable:
        at = sector * SECTOR
        count = self.header.tables
        if not at or at + 4 * count > self.storage.size or count > _MAX_TABLES:
            raise DiskFormatError(
                f"{self.storage.name}: the grain directory is outside the file",
                path=self.storage.name,
                offset=at,
            )
        return PagedTable(self.storage, at, count, "I", big_endian=False)

    @property
    def size(self) -> int:
        return self._size

    @property
    def cluster_size(self) -> int:
        return self._grain

    def room_for(self, ranges: Sequence[tuple[int, int]]) -> int:
        grains = count_units(ranges, self._grain)
        new = sum(not self.directory[number] for number in units_of(ranges, self._span))
        copies = 2 if self.redundant is not None else 1
        tables = new * copies * -(-self.header.per_table * 4 // SECTOR) * SECTOR
        # Behind a new table, a grain begins at the next multiple.
        edges = (new + 1) * self._grain if new else -self.storage.size % self._grain
        return tables + grains * self._grain + edges if grains else 0

    def allocated(self) -> int:
        return self.storage.allocated()

    # ---- tables -----------------------------------------------------------

    def _table(self, number: int) -> Table | None:
        found = self._tables.get(number)
        if found is not None:
            return found
        found = self._table_of(self.directory, number)
        if found is None:
            return None
        if not self.read_only:
            self._unsafe |= self._structures().unsafe(found.items)
        if len(self._tables) >= _TABLES_KEPT:
            clean = [n for n in list(self._tables) if n not in self._dirty]
            for old in clean[: len(clean) // 2]:
                self._tables.pop(old, None)
        return self._tables.setdefault(number, found)

    def _table_of(self, directory: PagedTable | None, number: int) -> Table | None:
        """Read the grain table that a directory names."""
        sector = directory[number] if directory is not None else 0
        if not sector:
            return None
        at = sector * SECTOR
        if at + self.header.per_table * 4 > self.storage.size:
            raise DiskFormatError(
                f"{self.storage.name}: a grain table is outside the file",
                path=self.storage.name,
                offset=at,
            )
        return Table.load(self.storage, at, self.header.per_table, "I", big_endian=False)

    def _structures(self) -> Layout:
        if self._layout is None:
            self._layout = self.layout()
        return self._layout

    def layout(self) -> Layout:
        """Return where the structures lie now."""
        directories = [self.directory] + ([self.redundant] if self.redundant is not None else [])
        return Layout(self.header, directories, zero_grains=self.zero_grains)

    def _table_to_change(self, number: int) -> Table:
        layout = self._structures()
        if layout.overlap:
            raise DiskFormatError(
                f"{self.storage.name}: its structures lie over one another",
                hint="open it read-only, and convert it",
                path=self.storage.name,
            )
        table = self._table(number)
        if table is None:
            table = self._make_table(number)
            self._tables[number] = table
        self._dirty.add(number)
        return table

    def _make_table(self, number: int) -> Table:
        """Return a new empty grain table at the end of the file, with its second copy."""
        length = self.header.per_table * 4
        at = -(-self.storage.size // SECTOR) * SECTOR
        copies = 2 if self.redundant is not None else 1
        room = -(-length // SECTOR) * SECTOR
        self._check_end(at + copies * room)
        self.storage.truncate(at + copies * room)
        self._new.add(number)
        self.directory[number] = at // SECTOR
        if self.redundant is not None:
            self.redundant[number] = (at + room) // SECTOR
        self._structures().add(at, at + copies * room)
        return Table.blank(self.storage, at, self.header.per_table, "I", big_endian=False)

    # ---- mending, for `check` ---------------------------------------------

    def replace_table(self, number: int, content: Table | None) -> None:
        """Take a table that is broken out of the directory, and put `content` in its place."""
        self._tables.pop(number, None)
        self.directory[number] = 0
        table = self._table_to_change(number)
        if content is not None:
            table.fill(0, content.items)

    def set_entry(self, number: int, place: int, entry: int) -> None:
        """Change one entry; the grain that it named is not touched."""
        self._table_to_change(number).set(place, entry)

    def renew_copy(self, number: int, table: Table) -> None:
        """Write the second copy of a table, somewhere else when it is outside the file."""
        assert self.redundant is not None
        room = -(-4 * self.header.per_table // SECTOR) * SECTOR
        at = self.redundant[number] * SECTOR
        if not at or at + room > self.storage.size:
            at = -(-self.storage.size // SECTOR) * SECTOR
            self.storage.truncate(at + room)
            self.redundant[number] = at // SECTOR
        Table(self.storage, at, table.items, big_endian=False).write_all()

    def pending(self) -> list[int]:
        """Return the host offsets of grains that are free, or will be."""
        return [*self._forgotten, *self._settling, *self._free]

    # ---- mapping ----------------------------------------------------------

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        end = offset + length
        span = self._span
        while offset < end:
            number = offset // span
            table = self._table(number)
            if table is not None:
                stop = min(end, (number + 1) * span)
                yield from self._table_runs(table.items, number * span, offset, stop)
            else:
                last = (end - 1) // span
                while number < last and not self.directory[number + 1]:
                    number += 1
                stop = min(end, (number + 1) * span)
                yield Run(stop - offset, Kind.ABSENT)
            offset = stop

    def _table_runs(self, items: array[int], base: int, offset: int, end: int) -> Iterator[Run]:
        grain = self._grain
        sectors = grain // SECTOR
        file_end = self.storage.size
        compressed = self.header.compressed
        index = (offset - base) // grain
        last = (end - 1 - base) // grain
        while index <= last:
            entry = items[index]
            stop = index + 1
            if not entry or (entry == _ZERO_GRAIN and self.zero_grains):
                kind = Kind.ZERO if entry else Kind.ABSENT
                while stop <= last and items[stop] == entry:
                    stop += 1
            elif compressed:
                kind = Kind.COMPRESSED
            else:
                kind = Kind.DATA
                expected = entry + sectors
                while stop <= last and items[stop] == expected:
                    expected += sectors
                    stop += 1
            run_end = min(end, base + stop * grain)
            length = run_end - offset
            if kind is Kind.DATA:
                host = entry * SECTOR + (offset - base) % grain
                if host + length > file_end:
                    # Another thread may have written the grain, and entered it, since.
                    file_end = self.storage.size
                if entry * SECTOR >= file_end:
                    raise self._outside(entry)
                if self._unsafe and not self._unsafe.isdisjoint(items[index:stop]):
                    raise self._over_structures(entry)
                # A grain at the end may be cut short by the end of the disk.
                writable = host + length <= file_end + grain
                yield Run(length, kind, host, self.storage, writable)
            elif kind is Kind.COMPRESSED:
                yield Run(length, kind, entry, self.storage)
            else:
                yield Run(length, kind)
            offset = run_end
            index = stop

    def _outside(self, entry: int) -> DiskFormatError:
        return DiskFormatError(
            f"{self.storage.name}: a grain is at {entry * SECTOR:#x}, outside the file",
            path=self.storage.name,
            offset=entry * SECTOR,
        )

    def _over_structures(self, entry: int) -> DiskFormatError:
        return DiskFormatError(
            f"{self.storage.name}: a grain at {entry * SECTOR:#x} lies over its structures",
            hint="mend it with `ringzero disk repair`",
            path=self.storage.name,
            offset=entry * SECTOR,
        )

    def _spot(self, offset: int, length: int, writing: bool) -> int | None:
        table = self._tables.get(offset // self._span)
        inside = offset % self._grain
        if table is None or inside + length > self._grain or self.header.compressed:
            return None
        entry = table.items[offset % self._span // self._grain]
        host = entry * SECTOR + inside
        if not entry and not writing:
            return SPOT_ABSENT
        if entry <= 1 or host + length > self.storage.size or entry in self._unsafe:
            return None
        return host

    def _check_end(self, end: int) -> None:
        if end > _MAX_FILE:
            raise DiskUnsupportedError(f"{self.storage.name}: a sparse extent has 2 TiB at most")

    def _grant(self, index: int, count: int) -> tuple[int, int]:
        if self._has_free():
            return self._free.pop(), 1
        grain = self._grain
        host = -(-self.storage.size // grain) * grain
        missing = 0
        for run in self._runs(index * grain, min(count * grain, self.size - index * grain)):
            if run.kind is Kind.DATA:
                break
            missing += -(-run.length // grain)
        missing = max(1, missing)
        self._check_end(host + missing * grain)
        return host, missing

    def _has_free(self) -> bool:
        """Whether a grain is free, after looking for space that earlier sessions have left."""
        if self._free:
            return True
        if self._unused is None:
            data = self.storage.size - self.header.overhead * SECTOR
            # Reading all tables pays when most of the file is holes.
            hollow = data > 2 * self.storage.allocated() + _HOLLOW
            self._unused = self._find_unused() if hollow else []
        if not self._unused:
            return False
        host = self._unused.pop()
        self.storage.write_zeroes(host, self._grain)
        self._free.append(host)
        return True

    def _find_unused(self) -> list[int]:
        """Return where whole grains fit into space that nothing names, the lowest last."""
        grain, limit = self._grain, self.storage.size // SECTOR
        taken = [(host, host + grain) for host in self.pending()]
        for number in range(self.header.tables):
            table = self._tables.get(number) or self._table_of(self.directory, number)
            entries = table.items if table is not None else ()
            taken += [(e * SECTOR, e * SECTOR + grain) for e in entries if 1 < e < limit]
        start = self.header.overhead * SECTOR
        found: list[int] = []
        for low, high in gaps([*taken, *self._structures()], start, self.storage.size):
            found += range(-(-low // grain) * grain, high - grain + 1, grain)
        return found[::-1]

    def _grant_is_zero(self, host: int, length: int) -> bool:
        # Fresh grains are past the end, free ones have been zeroed.
        return True

    def _link(self, index: int, count: int, host: int) -> None:
        per_table = self.header.per_table
        sectors = self._grain // SECTOR
        first = host // SECTOR
        # The whole of a grain is in the file, also the last one of the disk.
        if self.storage.size < host + count * self._grain:
            self.storage.truncate(host + count * self._grain)
        while count:
            number, inside = divmod(index, per_table)
            part = min(count, per_table - inside)
            table = self._table_to_change(number)
            self._forget(table.items[inside : inside + part])
            table.fill(inside, array("I", range(first, first + part * sectors, sectors)))
            index, count, first = index + part, count - part, first + part * sectors

    def _unlink(self, index: int, count: int, kind: Kind) -> None:
        if self.backing_name is not None and not self.zero_grains:
            raise NotImplementedError
        self._clear_entries(index, count, _ZERO_GRAIN if self.backing_name is not None else 0)

    def _clear_entries(self, index: int, count: int, value: int) -> None:
        """Set the entries of grains to `value`, and forget what they named."""
        per_table = self.header.per_table
        while count > 0:
            number, inside = divmod(index, per_table)
            part = min(count, per_table - inside)
            if self._table(number) is not None or value:
                table = self._table_to_change(number)
                self._forget(table.items[inside : inside + part])
                table.fill(inside, array("I", [value]) * part)
            index, count = index + part, count - part

    def _forget(self, entries: array[int]) -> None:
        """Note the grains that no table points at any more; those outside the file are not ours."""
        size = self.storage.size
        for entry in entries:
            inside = entry > _ZERO_GRAIN and entry * SECTOR + self._grain <= size
            if inside and entry not in self._unsafe:
                self._forgotten.append(entry * SECTOR)

    # ---- flushing ---------------------------------------------------------

    def _tables_dirty(self) -> bool:
        return bool(self._dirty)

    def _write_tables(self) -> None:
        redundant = self.redundant
        for number in sorted(self._dirty):
            table = self._tables[number]
            # The second copy first: one of the two is whole at any time.
            second = redundant[number] * SECTOR if redundant is not None else 0
            # A damaged redundant directory must not lead out of the file.
            if second and second + 4 * self.header.per_table <= self.storage.size:
                Table(self.storage, second, table.items, big_endian=False).write_all()
            table.write_back()
        self._dirty.clear()
        if self._new:
            self.storage.flush()
            self._new.clear()
            if redundant is not None:
                redundant.write_back()
            self.directory.write_back()
        self._settling += self._forgotten
        self._forgotten = []

    def _has_forgotten(self) -> bool:
        return bool(self._settling)

    def _reclaim(self) -> None:
        for host in self._settling:
            self.storage.write_zeroes(host, self._grain)
        self._free += self._settling
        self._settling = []

    # ---- compressed grains ------------------------------------------------

    def _decompress(self, run: Run, offset: int, views: Views) -> None:
        assert run.host is not None
        data = self._unpacked.get(run.host)
        if data is None:
            data = self._unpack(run.host)
            with self._unpacked_lock:
                while len(self._unpacked) >= _UNPACKED_KEPT:
                    self._unpacked.pop(next(iter(self._unpacked)))
                self._unpacked[run.host] = data
        start = offset % self._grain
        fill(views, memoryview(data)[start : start + run.length])

    def _unpack(self, sector: int) -> bytes:
        at = sector * SECTOR
        if at + SECTOR > self.storage.size:
            raise self._outside(sector)
        head = self.storage.read(at, 12)
        (length,) = struct.unpack_from("<I", head, 8)
        # Deflate grows what it cannot shrink by a few bytes in a thousand.
        if not 0 < length <= 2 * self._grain + SECTOR or at + 12 + length > self.storage.size:
            raise DiskFormatError(
                f"{self.storage.name}: the compressed grain at {at:#x} has {length} bytes",
                path=self.storage.name,
                offset=at,
            )
        try:
            data = zlib.decompressobj().decompress(self.storage.read(at + 12, length), self._grain)
        except zlib.error as fault:
            raise DiskFormatError(
                f"{self.storage.name}: the compressed grain at {at:#x} cannot be read: {fault}",
                path=self.storage.name,
                offset=at,
            ) from fault
        # The last grain of a disk may be stored short.
        return data.ljust(self._grain, b"\0")

    # ---- checking ---------------------------------------------------------

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Keep everybody out, with all tables written, while the extent is looked at as a whole."""
        with self._gate.alone(), self._alloc:
            if not self.read_only:
                self._write_back()
            yield

    def forget_unsafe(self) -> None:
        """Take all grains for safe: those over structures have got other places."""
        self._unsafe.clear()
