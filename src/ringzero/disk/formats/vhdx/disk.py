"""The VHDX disk: block table, sector bitmaps, log.

What a flush does when tables have changed: data durable; the changed 4 KiB
sectors of BAT and bitmaps into the log, durable; then into their places,
durable. An open image names its log in the header; `close` takes the name out.
"""

from __future__ import annotations

import bisect
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Self

from ringzero.disk.blockcheck import CheckedBlockDisk
from ringzero.disk.blocks import ABSENT, ZERO
from ringzero.disk.contract import (
    PARENT_OPTION,
    Disk,
    DiskInfo,
    Kind,
    Options,
    Sample,
    Surroundings,
)
from ringzero.disk.filenames import host_paths, relative_to, without_dot
from ringzero.disk.formats.vhdx.create import CREATE_OPTIONS, lay_out, make_metadata
from ringzero.disk.formats.vhdx.log import SECTOR as LOG_SECTOR
from ringzero.disk.formats.vhdx.log import Log, Replayed, pending
from ringzero.disk.formats.vhdx.structures import (
    BAT,
    MAX_SIZE,
    METADATA,
    NIL,
    REGION_OFFSETS,
    SIGNATURE,
    Header,
    Metadata,
    Region,
    locator_to_bytes,
    read_regions,
    region_table,
)
from ringzero.disk.gaps import Range
from ringzero.disk.paged import PagedTable
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import FileStorage, Storage
from ringzero.errors import DiskFormatError, DiskUnsupportedError, InvalidValueError
from ringzero.units import MIB

# 2.5.1.1: states of payload blocks.
_NOT_PRESENT, _ZERO, _UNMAPPED, _FULL, _PARTIAL = 0, 2, 3, 6, 7
_OFFSET = ~(MIB - 1)
# 2.5.1.2: states of sector bitmap blocks.
_BITMAP_PRESENT = 6
# Bitmaps of blocks kept in memory; one of a 2 MiB block has 512 bytes, of 256 MiB 64 KiB.
_BITMAPS_KEPT = 512


@FORMATS.register("vhdx")
class VhdxDisk(CheckedBlockDisk):
    """An open VHDX image: dynamic, fixed or differencing. See the package for its rooms."""

    format = "vhdx"
    can_have_backing = True
    create_options = CREATE_OPTIONS
    open_options = (PARENT_OPTION,)
    block_alignment = MIB

    def __init__(
        self, storage: Storage, header: Header, metadata: Metadata, around: Surroundings
    ) -> None:
        super().__init__(storage)
        self.header = header
        self.metadata = metadata
        self._around = around
        self.path = around.path
        self.read_only = around.read_only
        self.block_size = metadata.block_size
        self.bitmapped = metadata.has_parent
        self.sector_size = metadata.logical_sector
        self.chunk_ratio = metadata.chunk_ratio
        self._regions = read_regions(storage)
        self._load_table()
        self._log: Log | None = None
        self._bitmaps: dict[int, bytearray] = {}
        self._bitmaps_dirty: set[int] = set()
        if metadata.has_parent:
            names = parent_names(metadata.locator)
            given = around.options[PARENT_OPTION.name]
            first = names[0].replace("\\", "/") if names else "{unnamed}"
            self.backing_name, self.backing_format = given or without_dot(first), "vhdx"
            self.backing = around.open_parent(
                host_paths(names, beside=True),
                "vhdx",
                self._is_parent,
                given=given,
            )

    def _load_table(self) -> None:
        count = self.metadata.bat_entries()
        region = self._regions[BAT]
        if count * 8 > region.length:
            raise DiskFormatError(
                f"{self.storage.name}: the block table is too short for the disk",
                path=self.storage.name,
            )
        self.table = PagedTable(self.storage, region.offset, count, "Q", big_endian=False)
        log = Region(self.header.log_offset, self.header.log_length)
        self._taken = [log, *self._regions.values()]
        self._taken_end = max(region.end for region in self._taken)
        # Sorted: where the sector bitmap blocks are, over which nothing may be written.
        guarded = self.bitmapped and not self.read_only
        self._bitmap_hosts = self._find_bitmaps() if guarded else []

    def _find_bitmaps(self) -> list[int]:
        each = self.chunk_ratio + 1
        entries = (self.table[n] for n in range(self.chunk_ratio, len(self.table), each))
        return sorted(entry & _OFFSET for entry in entries if entry & 7 == _BITMAP_PRESENT)

    def _is_parent(self, disk: Disk) -> bool:
        expected = {
            self.metadata.locator.get(key, "").strip("{}").lower()
            for key in ("parent_linkage", "parent_linkage2")
        }
        return isinstance(disk, VhdxDisk) and str(disk.header.data_write) in expected

    @classmethod
    def probe(cls, sample: Sample) -> int:
        return 100 if sample.head.startswith(SIGNATURE) else 0

    @classmethod
    def open(cls, storage: Storage, around: Surroundings) -> Self:
        if storage.read(0, 8) != SIGNATURE:
            raise DiskFormatError(f"{storage.name} is no VHDX image", path=storage.name)
        header = Header.read(storage)
        if header.log_guid != NIL:
            writes, size = pending(storage, header.log_offset, header.log_length, header.log_guid)
            if around.read_only:
                storage = Replayed(storage, writes, size)
            else:
                for offset, length, data in writes:
                    if data is None:
                        storage.write_zeroes(offset, length)
                    else:
                        storage.write(offset, data)
                storage.flush()
                header.log_guid = NIL
                header.write(storage)
        metadata = Metadata.read(storage, read_regions(storage)[METADATA])
        return cls(storage, header, metadata, around)

    @classmethod
    def create(
        cls,
        storage: Storage,
        size: int,
        options: Options,
        around: Surroundings,
        backing: tuple[str, str] | None = None,
    ) -> None:
        locator = None if backing is None else make_locator(around, *backing)
        metadata = make_metadata(size, options, locator)
        bat = lay_out(storage, metadata, options["log_size"])
        if not metadata.leave_allocated:
            return
        # Fixed: every block is where it would be found anyway, one after the other.
        block, ratio = metadata.block_size, metadata.chunk_ratio
        start = bat.end
        table = PagedTable(storage, bat.offset, metadata.bat_entries(), "Q", big_endian=False)
        blocks = -(-metadata.size // block)
        for index in range(blocks):
            table[index + index // ratio] = start + index * block | _FULL
        storage.truncate(start + blocks * block)
        if options["preallocation"] == "full":
            Storage.write_zeroes(storage, start, blocks * block)
        elif options["preallocation"] == "falloc" and isinstance(storage, FileStorage):
            storage.preallocate(start, blocks * block)
        table.write_back()

    # ---- what it is -------------------------------------------------------

    @property
    def size(self) -> int:
        return self.metadata.size

    def info(self) -> DiskInfo:
        metadata = self.metadata
        kind = "fixed" if metadata.leave_allocated else "dynamic"
        return DiskInfo(
            filename=self.storage.name,
            format=self.format,
            virtual_size=self.size,
            actual_size=self.storage.allocated(),
            cluster_size=self.block_size,
            backing_filename=self.backing_name,
            backing_format=self.backing_format,
            dirty=isinstance(self.storage, Replayed),
            specific={
                "subformat": "differencing" if metadata.has_parent else kind,
                "log-size": self.header.log_length,
                "logical-sector-size": metadata.logical_sector,
                "physical-sector-size": metadata.physical_sector,
                "disk-id": str(metadata.disk_id),
            },
        )

    def _change_backing(self, name: str | None, format: str | None) -> None:
        if name is None or not self.metadata.has_parent:
            raise DiskUnsupportedError(
                "a VHDX image cannot gain or lose its parent", hint="convert it instead"
            )
        locator = make_locator(self._around, name, format or "vhdx")
        # The same parent, written to since: its names stay, relative and absolute.
        if name == self.backing_name:
            linkage = locator["parent_linkage"]
            locator = {**self.metadata.locator, "parent_linkage": linkage}
            locator.pop("parent_linkage2", None)
        data = locator_to_bytes(locator)
        region = self._regions[METADATA]
        with self._alloc:
            self.flush()
            self._begin()
            metadata = Metadata.read(self.storage, region)
            metadata.locator = locator
            if metadata.locator_offset + len(data) > region.end:
                raise DiskUnsupportedError("there is no room for so long a name")
            fresh = metadata.to_bytes()
            old = self.storage.read(region.offset, MIB)
            self._write_logged(
                (region.offset + at, fresh[at : at + LOG_SECTOR])
                for at in range(0, MIB, LOG_SECTOR)
                if fresh[at : at + LOG_SECTOR] != old[at : at + LOG_SECTOR]
            )
            self.storage.flush()
            self.metadata = Metadata.read(self.storage, region)
        self.backing_name, self.backing_format = name, "vhdx"

    # ---- mapping ----------------------------------------------------------

    def _block(self, index: int) -> int:
        entry = self.table[index + index // self.chunk_ratio]
        state = entry & 7
        if state in (_FULL, _PARTIAL):
            host = entry & _OFFSET
            if host < self._taken_end or host >= self.storage.size or self._bitmap_hosts:
                self._check_host(host)
            return host
        if not self.bitmapped or state in (_ZERO, _UNMAPPED):
            return ZERO
        return ABSENT

    def _check_host(self, host: int) -> None:
        end = host + self.block_size
        place = bisect.bisect_left(self._bitmap_hosts, host)
        over_bitmap = place < len(self._bitmap_hosts) and self._bitmap_hosts[place] < end
        if (
            not MIB <= host < self.storage.size
            or over_bitmap
            or any(host < region.end and region.offset < end for region in self._taken)
        ):
            raise DiskFormatError(
                f"{self.storage.name}: a block is at {host:#x}, "
                "outside the file or over its structures",
                path=self.storage.name,
                offset=host,
            )

    def _block_start(self) -> int:
        return MIB

    def _structures(self) -> Iterator[Range]:
        yield 0, MIB
        for region in self._taken:
            yield region.offset, region.end
        for host in self._find_bitmaps() if self.bitmapped else ():
            yield host, host + MIB

    def _set_block(self, index: int, host: int) -> None:
        if host >= 0:
            entry = host | (_PARTIAL if self.bitmapped else _FULL)
        else:
            entry = _ZERO if self.bitmapped else _NOT_PRESENT
        self.table[index + index // self.chunk_ratio] = entry
        if host < 0:
            self._bitmaps_dirty.discard(index)
            self._bitmaps.pop(index, None)

    def _new_block(self) -> int:
        return -(-self.storage.size // MIB) * MIB

    # ---- sector bitmaps ---------------------------------------------------

    def _bitmap_place(self, index: int) -> tuple[int, int]:
        """Return (file offset or 0 when there is none, length) of the bitmap of a block."""
        chunk, inside = divmod(index, self.chunk_ratio)
        length = self.block_size // self.sector_size // 8
        entry = self.table[chunk * (self.chunk_ratio + 1) + self.chunk_ratio]
        if entry & 7 != _BITMAP_PRESENT:
            return 0, length
        host = entry & _OFFSET
        outside = host < MIB or host + MIB > self.storage.size
        if outside or any(
            host < region.end and region.offset < host + MIB for region in self._taken
        ):
            raise DiskFormatError(
                f"{self.storage.name}: a sector bitmap is outside the file or over its structures",
                path=self.storage.name,
                offset=host,
            )
        return host + inside * length, length

    def _bits(self, index: int) -> bytearray | None:
        entry = self.table[index + index // self.chunk_ratio]
        if entry & 7 != _PARTIAL:
            return None
        found = self._bitmaps.get(index)
        if found is None:
            at, length = self._bitmap_place(index)
            if not at:
                raise DiskFormatError(
                    f"{self.storage.name}: block {index} has no sector bitmap",
                    path=self.storage.name,
                )
            found = bytearray(self.storage.read(at, length))
            if len(self._bitmaps) >= _BITMAPS_KEPT:
                for old in [n for n in self._bitmaps if n not in self._bitmaps_dirty][:64]:
                    self._bitmaps.pop(old, None)
            found = self._bitmaps.setdefault(index, found)
        return found

    def _new_bits(self, index: int) -> None:
        at, _ = self._bitmap_place(index)
        if not at:
            host = -(-self.storage.size // MIB) * MIB
            self.storage.truncate(host + MIB)
            chunk = index // self.chunk_ratio
            self.table[chunk * (self.chunk_ratio + 1) + self.chunk_ratio] = host | _BITMAP_PRESENT
            bisect.insort(self._bitmap_hosts, host)
        self._bitmaps[index] = bytearray(self.block_size // self.sector_size // 8)
        self._bitmaps_dirty.add(index)

    def _bits_changed(self, index: int) -> None:
        self._bitmaps_dirty.add(index)

    # ---- writing ----------------------------------------------------------

    def _begin_writing(self) -> None:
        # 2.2.2.1: new GUIDs before the first change to the file, and to its data.
        self.header.file_write = uuid.uuid4()
        self.header.data_write = uuid.uuid4()
        self.header.log_guid = NIL
        self.header.write(self.storage)

    def _tables_dirty(self) -> bool:
        return self.table.dirty or bool(self._bitmaps_dirty)

    def _write_tables(self) -> None:
        sectors: dict[int, bytearray] = {}

        def put(offset: int, data: bytes) -> None:
            done = 0
            while done < len(data):
                at = (offset + done) & ~(LOG_SECTOR - 1)
                inside = offset + done - at
                piece = data[done : done + LOG_SECTOR - inside]
                if at not in sectors:
                    sectors[at] = bytearray(self.storage.read(at, LOG_SECTOR))
                sectors[at][inside : inside + len(piece)] = piece
                done += len(piece)

        for index in sorted(self._bitmaps_dirty):
            at, _ = self._bitmap_place(index)
            put(at, bytes(self._bitmaps[index]))
        for offset, data in self.table.changed():
            put(offset, data)
        self._write_logged(sorted((at, bytes(data)) for at, data in sectors.items()))
        self.table.clean()
        self._bitmaps_dirty.clear()
        self._settle()

    def _write_logged(self, sectors: Iterable[tuple[int, bytes]]) -> None:
        """Write 4 KiB sectors by way of the log."""
        if self._log is None:
            self._log = Log(self.storage, self.header)
        self._log.write(list(sectors))

    def _unlink(self, index: int, count: int, kind: Kind) -> None:
        if not self.metadata.leave_allocated:
            super()._unlink(index, count, kind)
            return
        self._begin()
        for number in range(index, index + count):
            host = self._block(number)
            if host >= 0:
                self.storage.write_zeroes(host, self.block_size, keep_space=True)

    # ---- resizing ---------------------------------------------------------

    def _resize(self, size: int) -> None:
        if size % self.sector_size:
            raise InvalidValueError(
                f"this disk's size is a multiple of {self.sector_size}", size=size
            )
        self._begin()
        old = self.size
        with self._gate.alone(), self._alloc:
            for index in range(-(-size // self.block_size), -(-old // self.block_size)):
                self._replace(index, ABSENT)
            self._write_back()
            if self.metadata.bat_entries(size) * 8 > self._regions[BAT].length:
                self._move_table(self.metadata.bat_entries(size))
            at = self.metadata.size_offset
            sector = at & ~(LOG_SECTOR - 1)
            data = bytearray(self.storage.read(sector, LOG_SECTOR))
            struct.pack_into("<Q", data, at - sector, size)
            self._write_logged([(sector, bytes(data))])
            self.storage.flush()
            self.metadata.size = size
            self._load_table()
            inside = size % self.block_size
            if size < old and inside:
                host = self._block(size // self.block_size)
                if host >= 0:
                    self.storage.write_zeroes(host + inside, self.block_size - inside)
        self._zero_new(old, size)

    def _move_table(self, count: int) -> None:
        """Put a larger BAT at the end of the file; durable when it returns."""
        start = -(-self.storage.size // MIB) * MIB
        region = Region(start, -(-count * 8 // MIB) * MIB)
        if start + region.length > MAX_SIZE * 2:
            raise DiskUnsupportedError("the image is too large for a longer block table")
        before = self._regions[BAT]
        self.storage.truncate(region.end)
        for at in range(0, len(self.table) * 8, MIB):
            part = min(MIB, len(self.table) * 8 - at)
            self.storage.write(start + at, self.storage.read(before.offset + at, part))
        self.storage.flush()
        # One after the other: a reader takes the second when the first is torn.
        for place in REGION_OFFSETS:
            self.storage.write(place, region_table(region, self._regions[METADATA]))
            self.storage.flush()
        self._regions[BAT] = region

    def _close(self) -> None:
        try:
            if not self.read_only:
                if self._tables_dirty():
                    with self._alloc:
                        self._write_back()
                if self._log is not None:
                    self.storage.flush()
                    self.header.log_guid = NIL
                    self.header.write(self.storage)
        finally:
            self.storage.close()


def parent_names(locator: Mapping[str, str]) -> list[str]:
    """Return what a locator calls the parent, in the order of section 2.6.2.6.3."""
    keys = ("relative_path", "volume_path", "absolute_win32_path")
    return [locator[key] for key in keys if locator.get(key)]


def make_locator(around: Surroundings, name: str, format: str) -> dict[str, str]:
    """Return the locator of the parent `name`, which is opened to see what it is."""
    if format != "vhdx":
        raise InvalidValueError(
            f"the parent of a VHDX image is a VHDX image, not {format}",
            hint="use qcow2 for an overlay over another format",
        )
    if "\\" in name:
        raise InvalidValueError(
            f"a VHDX image cannot hold the name {name}: it has Windows paths",
            hint="use a name without a backslash",
        )
    with around.look_at(name, format) as parent:
        assert isinstance(parent, VhdxDisk)
        linkage = f"{{{parent.header.data_write}}}"
    found = {"parent_linkage": linkage}
    if name.startswith("/"):
        found["absolute_win32_path"] = name
    assert around.path is not None
    found["relative_path"] = relative_to(around.path, name).replace("/", "\\")
    return found
