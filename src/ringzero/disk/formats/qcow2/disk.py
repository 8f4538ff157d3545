"""The qcow2 disk: the image, and what is built on it, behind the contract of all disks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from ringzero.disk.contract import (
    CheckReport,
    DiskInfo,
    Option,
    Options,
    Repair,
    Sample,
    Surroundings,
)
from ringzero.disk.filenames import parse_whole_name
from ringzero.disk.formats.qcow2.bitmaps import Bitmaps
from ringzero.disk.formats.qcow2.compression import Qcow2Compression
from ringzero.disk.formats.qcow2.create import CREATE_OPTIONS, lay_out, make_header
from ringzero.disk.formats.qcow2.header import (
    CORRUPT,
    DIRTY,
    KNOWN_AUTOCLEAR,
    LAZY_REFCOUNTS,
    MAGIC,
    RAW_EXTERNAL,
    Header,
)
from ringzero.disk.formats.qcow2.image import Qcow2Image
from ringzero.disk.formats.qcow2.snapshots import Qcow2Snapshots, read_table
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import FileStorage, Storage
from ringzero.disk.tables import count_units
from ringzero.errors import DiskFormatError, InvalidValueError


class _Alone(Surroundings):
    """The surroundings of an image that is being made: its parts, but no backing file."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self.path = around.path
        self.read_only = False
        self.options = around.options

    def open_backing(self, name: str, format: str | None) -> None:
        return None

    def open_storage(self, *names: str) -> Storage:
        return self.around.open_storage(*names)

    def create_storage(self, name: str) -> Storage:
        return self.around.create_storage(name)


@FORMATS.register("qcow2")
class Qcow2Disk(Qcow2Image):
    """An open qcow2 image. See the package for its rooms."""

    format = "qcow2"
    can_have_backing = True
    create_options = CREATE_OPTIONS
    open_options = (
        Option.flag("for_repair", False, "open an image that is marked corrupt, to repair it"),
        Option("snapshot", str, None, "show the disk as this internal snapshot has it, read-only"),
    )

    def __init__(self, storage: Storage, header: Header, around: Surroundings) -> None:
        super().__init__(storage, header, around)
        self.bitmaps = Bitmaps(self)
        # One for all threads: it knows where the next compressed cluster goes.
        self._compression = Qcow2Compression(self)

    @classmethod
    def probe(cls, sample: Sample) -> int:
        # Version 1 is a format of its own.
        known = sample.head.startswith(MAGIC) and sample.head[4:8] != b"\0\0\0\1"
        return 100 if known else 0

    @classmethod
    def open(cls, storage: Storage, around: Surroundings) -> Self:
        header = Header.read(storage)
        for_repair = around.options["for_repair"]
        if header.incompatible & CORRUPT and not around.read_only and not for_repair:
            raise DiskFormatError(
                f"{storage.name} is marked corrupt",
                hint="repair it with `ringzero disk check --repair all`, or open it read-only",
                path=storage.name,
            )
        shown = around.options["snapshot"]
        if shown and not around.read_only:
            raise InvalidValueError(
                "a snapshot is only opened for reading",
                hint="apply it with `ringzero disk snapshot -a`, or convert it with -l",
            )
        disk = cls(storage, header, around)
        if shown:
            disk._show(shown)
        if not around.read_only and not for_repair:
            try:
                disk._begin_writing()
            except BaseException:
                if disk.backing is not None:
                    disk.backing.close()
                if disk.data is not storage:
                    disk.data.close()
                raise
        return disk

    def _show(self, which: str) -> None:
        """Let the disk read as an internal snapshot has it."""
        try:
            self.snapshots.show(which)
        except BaseException:
            if self.backing is not None:
                self.backing.close()
            if self.data is not self.storage:
                self.data.close()
            raise

    def _begin_writing(self) -> None:
        header = self.header
        if header.autoclear & ~KNOWN_AUTOCLEAR:
            header.autoclear &= KNOWN_AUTOCLEAR
            header.write(self.storage)
        if header.incompatible & DIRTY:
            report = self.check(Repair.ALL)
            if report.errors != report.errors_fixed:
                raise DiskFormatError(
                    f"{self.storage.name} was not closed properly and cannot be repaired: "
                    + "; ".join(report.messages[:3]),
                    path=self.storage.name,
                )
        self.watch()

    @classmethod
    def create(
        cls,
        storage: Storage,
        size: int,
        options: Options,
        around: Surroundings,
        backing: tuple[str, str] | None = None,
    ) -> None:
        header = make_header(size, options, backing)
        if header.data_file:
            data = around.create_storage(parse_whole_name(header.data_file))
            try:
                if options["data_file_raw"]:
                    data.truncate(size)
                data.flush()
            finally:
                data.close()
        lay_out(storage, header)
        how = options["preallocation"]
        if how != "off" or options["data_file_raw"]:
            disk = cls(storage, Header.read(storage), _Alone(around))
            try:
                disk._preallocate(how)
            finally:
                if disk.data is not storage:
                    disk.data.close()

    def _preallocate(self, how: str) -> None:
        size = self.cluster_size
        index, count = 0, -(-self.size // size)
        while index < count:
            host, found = self._grant(index, count - index)
            self._link(index, found, host)
            end = host + found * size
            if self.data.size < end:
                self.data.truncate(end if self.data is self.storage else self.size)
            if how == "falloc" and isinstance(self.data, FileStorage):
                self.data.preallocate(host, found * size)
            elif how == "full":
                Storage.write_zeroes(self.data, host, found * size)
            index += found
        self._write_back()
        self._flush_storages()

    # ---- what it is -------------------------------------------------------

    def room_for(self, ranges: Sequence[tuple[int, int]]) -> int:
        clusters = count_units(ranges, self.cluster_size)
        tables = count_units(ranges, self.cluster_size << self.map.l2_bits)
        if not self.map.external:
            return self.refcounts.room_for(clusters + tables)
        return self.refcounts.room_for(tables) + max(0, self.size - self.data.size)

    def sparse_files(self) -> Sequence[Storage]:
        return [self.data]

    @property
    def compression(self) -> Qcow2Compression | None:
        if self.map.external:
            return None
        return self._compression

    @property
    def snapshots(self) -> Qcow2Snapshots:
        return Qcow2Snapshots(self)

    def info(self) -> DiskInfo:
        header = self.header
        specific: dict[str, Any] = {
            "compat": "1.1" if header.version == 3 else "0.10",
            "compression-type": header.compression,
            "refcount-bits": header.refcount_bits,
        }
        if header.version >= 3:
            specific["lazy-refcounts"] = bool(header.compatible & LAZY_REFCOUNTS)
            specific["corrupt"] = bool(header.incompatible & CORRUPT)
            specific["extended-l2"] = header.extended
        if header.data_file:
            specific["data-file"] = header.data_file
            specific["data-file-raw"] = bool(header.autoclear & RAW_EXTERNAL)
        if header.bitmaps:
            specific["bitmaps"] = [bitmap.describe() for bitmap in self.bitmaps.read()]
        return DiskInfo(
            filename=self.storage.name,
            format=self.format,
            virtual_size=self.size,
            actual_size=self.storage.allocated(),
            cluster_size=self.cluster_size,
            backing_filename=self.backing_name,
            backing_format=self.backing_format,
            dirty=bool(header.incompatible & DIRTY),
            corrupt=bool(header.incompatible & CORRUPT),
            snapshots=list(self.snapshots.list()),
            specific=specific,
        )

    def check(self, repair: Repair = Repair.NOTHING) -> CheckReport:
        if self.read_only and repair is not Repair.NOTHING:
            raise self._read_only_error()
        # Not every command checks.
        from ringzero.disk.formats.qcow2.check import Checker

        if self.read_only:
            return Checker(self).run(repair)
        with self.at_rest():
            return Checker(self).run(repair)

    def snapshot_tables(self) -> list[tuple[int, int]]:
        """Return the (offset, length) of the snapshots' tables."""
        try:
            entries, length = read_table(self)
        except DiskFormatError:
            # `check` says what is wrong with it.
            return []
        tables = [(entry.l1_offset, 8 * entry.l1_size) for entry in entries]
        return [*tables, (self.header.snapshots_offset, length)]

    def _change_backing(self, name: str | None, format: str | None) -> None:
        with self._alloc:
            old = self.header.backing_name, self.header.backing_format
            self.header.backing_name, self.header.backing_format = name, format
            try:
                data = self.header.to_bytes()
            except DiskFormatError:
                self.header.backing_name, self.header.backing_format = old
                raise
            self.storage.write(0, data)
            self.storage.flush()
        self.backing_name, self.backing_format = name, format

    def make_empty(self) -> None:
        if self.read_only:
            raise self._read_only_error()
        self.touch(0, self.size)
        with self._gate.alone(), self._alloc:
            self._empty(0)
        self._flush()

    def touch(self, offset: int, length: int) -> None:
        if self.header.bitmaps is not None:
            self.bitmaps.touch(offset, length)

    def finish(self) -> None:
        if self.header.bitmaps is not None:
            self.bitmaps.store()
