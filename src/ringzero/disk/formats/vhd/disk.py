"""The VHD disk: fixed images are raw with a footer; others have blocks, each behind its bitmap.

The footer stands at the end, where the next block goes. It is overwritten by
that block and written anew when the tables are; meanwhile its copy at the
front holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Self

from ringzero.disk.blockcheck import CheckedBlockDisk
from ringzero.disk.blocks import ABSENT, ZERO
from ringzero.disk.contract import (
    PARENT_OPTION,
    SECTOR,
    CheckReport,
    DiskInfo,
    Extent,
    Kind,
    Option,
    Options,
    Repair,
    Run,
    Sample,
    Surroundings,
)
from ringzero.disk.filenames import host_paths, relative_to, without_dot
from ringzero.disk.formats.vhd.structures import (
    COOKIE,
    DIFFERENCING,
    DYNAMIC,
    FIXED,
    HEADER_SIZE,
    MAX_BLOCK,
    TYPES,
    Footer,
    Header,
    locators_for,
    read_footer,
    timestamp,
)
from ringzero.disk.gaps import Range
from ringzero.disk.paged import PagedTable
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import FileStorage, Storage
from ringzero.disk.vectors import Views
from ringzero.errors import DiskFormatError, DiskUnsupportedError, InvalidValueError
from ringzero.units import GIB, MIB

_FREE = 0xFFFF_FFFF
# "The maximum size of a virtual hard disk": what 32 bits of sectors reach.
_MAX_SIZE = 2040 * GIB
_BLOCK = 2 * MIB
# Room for a parent locator, so that a longer name can take its place.
_LOCATOR_ROOM = 4096
_BITMAPS_KEPT = 4096
# How many bitmaps the host is asked for at once by who looks through the disk: they lie a block
# apart, and one after the other they would take as long as the data.
_BITMAPS_TOLD = 64


@FORMATS.register("vhd")
class VhdDisk(CheckedBlockDisk):
    """An open VHD image, dynamic or differencing; `FixedVhd` is the other kind."""

    format = "vhd"
    can_have_backing = True
    open_options = (PARENT_OPTION,)
    bitmapped = True
    high_bit_first = True
    create_options = (
        Option.choice("subformat", ("dynamic", "fixed"), "dynamic", "grow as needed or not"),
        Option.size("block_size", _BLOCK, "bytes in a block, a power of two"),
        Option.flag("force_size", True, "accepted: sizes are never rounded to cylinders"),
        Option.choice("preallocation", ("off", "falloc", "full"), "off", "for subformat=fixed"),
    )

    def __init__(self, storage: Storage, footer: Footer, around: Surroundings) -> None:
        super().__init__(storage)
        self.footer = footer
        self.path = around.path
        self.read_only = around.read_only
        self._around = around

    def _load(self) -> None:
        storage = self.storage
        self.header = header = Header.read(storage, self.footer.size, self.footer.header_offset)
        self.block_size = header.block_size
        bits = self.block_size // SECTOR // 8
        self.block_lead = -(-bits // SECTOR) * SECTOR
        self.table = PagedTable(storage, header.table_offset, header.entries, "I", big_endian=True)
        # None: all sectors are held.
        self._bitmaps: dict[int, bytearray | None] = {}
        self._bitmaps_dirty: set[int] = set()
        self._note_places()
        whole = storage.size - SECTOR
        has_footer = whole >= 0 and storage.read(whole, SECTOR)[:8] == COOKIE
        end = whole if has_footer else -(-storage.size // SECTOR) * SECTOR
        # Where the footer is, or belongs.
        self._end = max(-(-self._floor // SECTOR) * SECTOR, end)
        if self.footer.kind == DIFFERENCING:
            names = header.parent_names(storage)
            given = self._around.options[PARENT_OPTION.name]
            first = names[0].replace("\\", "/") if names else f"{{{header.parent}}}"
            self.backing_name, self.backing_format = given or without_dot(first), "vhd"
            self.backing = self._around.open_parent(
                host_paths(names, beside=True),
                "vhd",
                lambda disk: isinstance(disk, VhdDisk) and disk.footer.unique == header.parent,
                given=given,
            )

    def _places(self) -> Iterator[Range]:
        """Yield the (start, end) of the headers, the block table and the parent locators."""
        header = self.header
        yield 0, SECTOR
        yield self.footer.header_offset, self.footer.header_offset + HEADER_SIZE
        table = -(-4 * header.entries // SECTOR) * SECTOR
        yield header.table_offset, header.table_offset + table
        for at, size in self._locator_rooms():
            yield at, at + size

    def _locator_rooms(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, size) of the rooms of the parent locators that are in the file."""
        for _, room, length, at in self.header.locators:
            # Writers disagree on whether the room is in sectors or in bytes.
            size = -(-max(length, room if room >= SECTOR else room * SECTOR) // SECTOR) * SECTOR
            if at + size <= self.storage.size:
                yield at, size

    @classmethod
    def probe(cls, sample: Sample) -> int:
        if sample.head.startswith(COOKIE):
            return 100
        footer = Footer.parse(sample.tail, sample.name) if COOKIE in sample.tail[:8] else None
        return 90 if footer is not None and footer.kind == FIXED else 0

    @classmethod
    def open(cls, storage: Storage, around: Surroundings) -> Self:
        footer = read_footer(storage)
        kind = FixedVhd if footer.kind == FIXED else VhdDisk
        disk = kind(storage, footer, around)
        disk._load()
        return disk  # type: ignore[return-value]

    @classmethod
    def create(
        cls,
        storage: Storage,
        size: int,
        options: Options,
        around: Surroundings,
        backing: tuple[str, str] | None = None,
    ) -> None:
        block = options["block_size"]
        if size > _MAX_SIZE:
            raise InvalidValueError("a VHD disk has 2040G at most", hint="use VHDX")
        if block & (block - 1) or not 512 * 1024 <= block <= MAX_BLOCK:
            raise InvalidValueError("block_size is a power of two, 512K to 256M")
        if options["subformat"] == "fixed":
            if backing is not None:
                raise InvalidValueError("a fixed image has no backing file")
            storage.truncate(size)
            if options["preallocation"] == "full":
                Storage.write_zeroes(storage, 0, size)
            elif options["preallocation"] == "falloc" and isinstance(storage, FileStorage):
                storage.preallocate(0, size)
            storage.write(size, Footer.make(size, FIXED).to_bytes())
            return
        if options["preallocation"] != "off":
            raise InvalidValueError("preallocation needs subformat=fixed")
        footer = Footer.make(size, DYNAMIC if backing is None else DIFFERENCING)
        table = SECTOR + HEADER_SIZE
        header = Header(table, -(-size // block), block)
        if backing is not None:
            header.table_offset = table + 2 * _LOCATOR_ROOM
            link = _link(header, around, *backing)
            rooms = [(table + n * _LOCATOR_ROOM, _LOCATOR_ROOM) for n in range(len(link))]
            _write_locators(storage, header, link, rooms)
        room = max(SECTOR, -(-4 * header.entries // SECTOR) * SECTOR)
        storage.write(header.table_offset, b"\xff" * room)
        storage.write(SECTOR, header.to_bytes())
        storage.write(header.table_offset + room, footer.to_bytes())
        storage.write(0, footer.to_bytes())

    # ---- what it is -------------------------------------------------------

    @property
    def size(self) -> int:
        return self.footer.size

    def info(self) -> DiskInfo:
        fixed = self.footer.kind == FIXED
        return DiskInfo(
            filename=self.storage.name,
            format=self.format,
            virtual_size=self.size,
            actual_size=self.storage.allocated(),
            cluster_size=None if fixed else self.block_size,
            backing_filename=self.backing_name,
            backing_format=self.backing_format,
            specific={
                "subformat": TYPES[self.footer.kind],
                "uuid": str(self.footer.unique),
                "creator": self.footer.creator.decode("latin-1").strip("\0 "),
            },
        )

    def _change_backing(self, name: str | None, format: str | None) -> None:
        if name is None or self.footer.kind != DIFFERENCING:
            raise DiskUnsupportedError(
                "a VHD image cannot gain or lose its parent", hint="convert it instead"
            )
        header = self.header
        with self._gate.alone(), self._alloc:
            rooms = list(self._locator_rooms())
            link = _link(header, self._around, name, format or "vhd")
            # The same parent, written to since: its names stay, relative and absolute.
            if name != self.backing_name:
                fits = all(
                    len(data) <= room for (_, data), (_, room) in zip(link, rooms, strict=False)
                )
                if len(rooms) < len(link) or not fits:
                    rooms = self._room_at_end(len(link))
                _write_locators(self.storage, header, link, rooms)
            self.storage.flush()
            self.storage.write(self.footer.header_offset, header.to_bytes())
            self.storage.flush()
            self._note_places()
        self.backing_name = name

    def _room_at_end(self, count: int) -> list[tuple[int, int]]:
        """Return room for locators at the end of the file, before the footer."""
        at = self._end
        self._end += count * _LOCATOR_ROOM
        self._write_last_footer()
        return [(at + number * _LOCATOR_ROOM, _LOCATOR_ROOM) for number in range(count)]

    def _note_places(self) -> None:
        """Take note of where the structures are."""
        self._taken = sorted(self._places())
        # Blocks that begin below this one may lie over structures.
        self._floor = max(end for _, end in self._taken)

    # ---- mapping ----------------------------------------------------------

    def _block(self, index: int) -> int:
        entry = self.table[index]
        if entry == _FREE:
            return ABSENT if self.backing_name is not None else ZERO
        start = entry * SECTOR
        end = start + self.block_lead + self.block_size
        # Some writers leave the end of the last block out; only reading can do with that.
        limit = self.storage.size + self.block_size if self.read_only else self._end
        if end > limit or start < self._floor or start >= self.storage.size:
            self._check_place(start, end, limit)
        return start + self.block_lead

    def _check_place(self, start: int, end: int, limit: int) -> None:
        over = any(start < high and low < end for low, high in self._taken)
        if over or end > limit or start >= self.storage.size:
            raise DiskFormatError(
                f"{self.storage.name}: a block is at {start:#x}, "
                "outside the file or over its structures",
                path=self.storage.name,
                offset=start,
            )

    def _structures(self) -> Iterator[Range]:
        yield from self._taken

    def _block_end(self) -> int:
        return self._end

    def _set_block(self, index: int, host: int) -> None:
        self._bitmaps_dirty.discard(index)
        self._bitmaps.pop(index, None)
        if host < 0:
            self.table[index] = _FREE
            return
        self.table[index] = (host - self.block_lead) // SECTOR
        self._end = max(self._end, host + self.block_size)

    def _new_block(self) -> int:
        host = self._end + self.block_lead
        if (host + self.block_size) // SECTOR >= _FREE:
            raise DiskUnsupportedError("a VHD file has 2 TiB at most", hint="use VHDX")
        return host

    def _bits(self, index: int) -> bytearray | None:
        if index in self._bitmaps:
            return self._bitmaps[index]
        at = self.table[index] * SECTOR
        length = self.block_size // SECTOR // 8
        raw = self.storage.read(at, length)
        found = None if raw.count(0xFF) == length else bytearray(raw)
        if len(self._bitmaps) >= _BITMAPS_KEPT:
            clean = [n for n in list(self._bitmaps) if n not in self._bitmaps_dirty]
            for old in clean[: len(clean) // 2]:
                self._bitmaps.pop(old, None)
        return self._bitmaps.setdefault(index, found)

    def _status(self, offset: int, length: int, depth: int, layers: int | None) -> Iterator[Extent]:
        told = offset // self.block_size
        last = -(-(offset + length) // self.block_size) if self.bitmapped else told
        at = offset
        for extent in chain((None,), super()._status(offset, length, depth, layers)):
            if extent is not None:
                yield extent
                at = extent.offset + extent.length
            if told < last and at // self.block_size + _BITMAPS_TOLD > told:
                more = range(told, min(told + 2 * _BITMAPS_TOLD, last))
                for index in more:
                    if self.table[index] != _FREE and index not in self._bitmaps:
                        self.storage.announce(self.table[index] * SECTOR, SECTOR)
                told = more.stop

    def _new_bits(self, index: int) -> None:
        length = self.block_size // SECTOR // 8
        # The space is fresh and zero, so without a parent all of it is held.
        fill = b"\0" if self.backing_name is not None else b"\xff"
        self._bitmaps[index] = bytearray(fill * length)
        self._bitmaps_dirty.add(index)

    def _cover(self, index: int) -> None:
        # Without a parent, a sector that a failed write leaves behind hides nothing.
        if self.backing_name is None and index not in self._bitmaps:
            with self._alloc:
                full = bytearray(b"\xff" * (self.block_size // SECTOR // 8))
                if self._bitmaps.setdefault(index, full) is full:
                    self._bitmaps_dirty.add(index)

    def _bits_changed(self, index: int) -> None:
        self._bitmaps_dirty.add(index)

    def _unlink(self, index: int, count: int, kind: Kind) -> None:
        if self.backing_name is not None:
            # There is no way to say "zero" but to hold zeroes.
            raise NotImplementedError
        super()._unlink(index, count, kind)

    # ---- writing ----------------------------------------------------------

    def _begin_writing(self) -> None:
        if self.footer.saved_state:
            raise DiskUnsupportedError(f"{self.storage.name} belongs to a suspended machine")

    def _tables_dirty(self) -> bool:
        return self.table.dirty or bool(self._bitmaps_dirty)

    def _write_tables(self) -> None:
        full = b"\xff" * (self.block_size // SECTOR // 8)
        for index in sorted(self._bitmaps_dirty):
            bits = self._bitmaps[index]
            if bits is not None:
                self.storage.write(self.table[index] * SECTOR, bytes(bits))
                if bits == full:
                    self._bitmaps[index] = None
        self._bitmaps_dirty.clear()
        if self.table.dirty:
            self._write_last_footer()
            self.storage.flush()
            self.table.write_back()
        self._settle()

    def _write_last_footer(self) -> None:
        self.storage.write(self._end, self.footer.to_bytes())

    # ---- checking, resizing -----------------------------------------------

    def check(self, repair: Repair = Repair.NOTHING) -> CheckReport:
        report = super().check(repair)
        good = self.footer.to_bytes()
        with self._alloc:
            front = Footer.parse(self.storage.read(0, SECTOR), self.storage.name)
            mend = repair is not Repair.NOTHING
            if front is None or front.to_bytes() != good:
                report.error("the copy of the footer is damaged", fixed=repair is Repair.ALL)
                if repair is Repair.ALL:
                    self.storage.write(0, good)
            last = Footer.parse(self.storage.read(self._end, SECTOR), self.storage.name)
            if last is None:
                # What a crash leaves; the copy at the front holds.
                report.leak("the footer at the end is missing or damaged", fixed=mend)
                if mend:
                    self._write_last_footer()
            if mend:
                self.storage.flush()
        return report

    def _resize(self, size: int) -> None:
        if size > _MAX_SIZE:
            raise InvalidValueError("a VHD disk has 2040G at most", hint="use VHDX")
        self._begin()
        old = self.size
        entries = -(-size // self.block_size)
        with self._gate.alone(), self._alloc:
            for index in range(entries, -(-old // self.block_size)):
                self._replace(index, ABSENT)
            self._write_back()
            self._flush_storages()
            if entries > self.header.entries:
                self._move_table(entries)
            self.footer.resize(size)
            # The one at the end is read first; the other one while that is torn.
            self._write_last_footer()
            self.storage.flush()
            self.storage.write(0, self.footer.to_bytes())
            self.storage.flush()
        # What was cut off by an earlier change of size may still be in the last block.
        edge = min(size, -(-old // self.block_size) * self.block_size)
        if old < edge:
            self._write_over(old, edge - old)
        self._zero_new(old, size)

    def _move_table(self, entries: int) -> None:
        """Put a longer block table at the end of the file; durable when it returns."""
        room = -(-4 * entries // SECTOR) * SECTOR
        at = self._end
        old = self.header
        self.storage.write(at + room, self.footer.to_bytes())
        for start in range(0, room, MIB):
            here = self.storage.read(old.table_offset + start, min(MIB, room - start))
            there = max(0, min(len(here), 4 * old.entries - start))
            self.storage.write(at + start, here[:there].ljust(len(here), b"\xff"))
        self._end = at + room
        self.storage.flush()
        old.table_offset, old.entries = at, entries
        # Where the table is changes with one sector.
        self.storage.write(self.footer.header_offset, old.to_bytes())
        self.storage.flush()
        self.table = PagedTable(self.storage, at, entries, "I", big_endian=True)
        self._note_places()


class FixedVhd(VhdDisk):
    """The bytes of the disk, and a footer."""

    bitmapped = False

    def _load(self) -> None:
        self.block_size = MIB
        if self.footer.size + SECTOR - 1 > self.storage.size:
            raise DiskFormatError(
                f"{self.storage.name} is shorter than its footer says", path=self.storage.name
            )

    def check(self, repair: Repair = Repair.NOTHING) -> CheckReport:
        raise DiskUnsupportedError("fixed VHD images have nothing to check")

    def _block(self, index: int) -> int:
        return index * self.block_size

    def _spot(self, offset: int, length: int, writing: bool) -> int | None:
        return offset

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        for run, has_data in self.storage.extents(offset, length):
            yield Run(run, Kind.DATA if has_data else Kind.ZERO, offset, self.storage, True)
            offset += run

    def _write(self, offset: int, views: Views) -> None:
        self._begin()
        self.storage.write(offset, views)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self._begin()
        self.storage.write_zeroes(offset, length, keep_space=not unmap)

    def _discard(self, offset: int, length: int) -> None:
        # A host's discard may leave anything; here it must be zero or as before.
        self._write_zeroes(offset, length, unmap=True)

    def _tables_dirty(self) -> bool:
        return False

    def _resize(self, size: int) -> None:
        if size > _MAX_SIZE:
            raise InvalidValueError("a VHD disk has 2040G at most", hint="use VHDX")
        with self._gate.alone(), self._alloc:
            old = self.size
            self.footer.resize(size)
            # A file always ends with one whole footer, at either size.
            self.storage.write(size, self.footer.to_bytes())
            self.storage.flush()
            if size < old:
                self.storage.truncate(size + SECTOR)
            else:
                self.storage.write_zeroes(old, min(SECTOR, size - old))
            self.storage.flush()


def _link(header: Header, around: Surroundings, name: str, kind: str) -> list[tuple[bytes, bytes]]:
    """Enter the parent `name` in a header; return its locators, (platform code, data)."""
    if kind != "vhd":
        raise InvalidValueError(
            f"the parent of a VHD image is a VHD image, not {kind}",
            hint="use qcow2 for an overlay over another format",
        )
    assert around.path is not None
    relative = relative_to(around.path, name)
    locators = locators_for(name, relative)
    if any(len(data) > _LOCATOR_ROOM for _, data in locators):
        raise DiskUnsupportedError("there is no room for so long a name")
    with around.look_at(name, kind) as parent:
        assert isinstance(parent, VhdDisk)
        header.parent = parent.footer.unique
        header.parent_time = timestamp()
    header.parent_name = relative
    return locators


def _write_locators(
    storage: Storage,
    header: Header,
    locators: list[tuple[bytes, bytes]],
    rooms: list[tuple[int, int]],
) -> None:
    """Write locators into rooms of (offset, size), and enter them in the header."""
    header.locators = []
    for (code, data), (at, room) in zip(locators, rooms, strict=False):
        storage.write(at, data.ljust(room, b"\0"))
        header.locators.append((code, room, len(data), at))
