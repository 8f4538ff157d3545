"""QED, which QEMU made for some time and still reads (QEMU, docs/interop/qed_spec.txt). Read only.

Two levels of tables of 64-bit little-endian offsets; an entry 0 says nothing, 1 is zeroes.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from ringzero.disk.contract import SECTOR, CheckReport, Kind, Run, Sample, Surroundings
from ringzero.disk.readonly import ReadOnlyDisk, joined
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import Storage
from ringzero.disk.tables import Table
from ringzero.errors import DiskFormatError, DiskUnsupportedError
from ringzero.units import KIB, MIB

_MAGIC = b"QED\0"
# magic, cluster size, table size and header size in clusters, features, compatible and
# autoclear features, L1 table, image size, place and length of the backing file's name.
_HEADER = struct.Struct("<4sIIIQQQQQII")
_BACKING, _NEED_CHECK, _BACKING_IS_RAW = 1, 2, 4
_KNOWN = _BACKING | _NEED_CHECK | _BACKING_IS_RAW

# "Limits" of the specification.
_MIN_CLUSTER, _MAX_CLUSTER = 4 * KIB, 64 * MIB
_MAX_TABLE = 16
_MAX_NAME = 1023

_ZERO = 1
# Pieces of tables in memory: 64 KiB each, 16 MiB in all.
_PAGE = 8192
_PAGES_KEPT = 256
# A byte for each is noted, and a hostile file may pretend to any length.
_MOST_CHECKED = 1 << 30


@dataclass(frozen=True)
class Header:
    """The header; sizes and offsets in bytes."""

    cluster_size: int
    table_size: int
    header_size: int
    features: int
    l1_offset: int
    size: int
    backing_name: str | None

    @classmethod
    def read(cls, storage: Storage) -> Header:
        """Read and verify the header; DiskFormatError, DiskUnsupportedError."""
        name = storage.name
        (magic, cluster, tables, clusters, features, _, _, l1_offset, size, backing_at,
         backing_size) = _HEADER.unpack(storage.read(0, _HEADER.size))  # fmt: skip
        wrong = None
        if magic != _MAGIC:
            raise DiskFormatError(f"{name} is no QED image", path=name)
        if features & ~_KNOWN:
            raise DiskUnsupportedError(
                f"{name}: QED features {features & ~_KNOWN:#x} are not known", path=name
            )
        if cluster & (cluster - 1) or not _MIN_CLUSTER <= cluster <= _MAX_CLUSTER:
            wrong = f"clusters of {cluster} bytes"
        elif tables & (tables - 1) or not 1 <= tables <= _MAX_TABLE:
            wrong = f"tables of {tables} clusters"
        elif not 1 <= clusters <= storage.size // cluster:
            wrong = f"a header of {clusters} clusters"
        elif size % SECTOR or size > (tables * cluster // 8) ** 2 * cluster or size >= 1 << 63:
            wrong = f"a disk of {size} bytes"
        elif backing_size > _MAX_NAME or backing_at + backing_size > clusters * cluster:
            wrong = "a backing file's name outside the header"
        if wrong:
            raise DiskFormatError(f"{name}: {wrong} make no sense", path=name)
        backing = storage.read(backing_at, backing_size) if features & _BACKING else b""
        return cls(
            cluster, tables * cluster, clusters * cluster, features, l1_offset, size,
            backing.decode("utf-8", "surrogateescape") or None,
        )  # fmt: skip


@FORMATS.register("qed")
class QedDisk(ReadOnlyDisk):
    """An open QED image."""

    format = "qed"
    can_have_backing = True

    def __init__(self, storage: Storage, header: Header, around: Surroundings) -> None:
        super().__init__(
            storage, around, size=header.size, cluster_size=header.cluster_size,
            dirty=bool(header.features & _NEED_CHECK),
        )  # fmt: skip
        self.header = header
        self._entries = header.table_size // 8
        # What one entry of the L1 table leads to.
        self._span = self._entries * header.cluster_size
        # By their place in the file.
        self._pages: dict[int, array[int]] = {}
        self._check_table(header.l1_offset)
        if header.backing_name is not None:
            self.backing_name = header.backing_name
            self.backing_format = "raw" if header.features & _BACKING_IS_RAW else None
            self.backing = around.open_backing(self.backing_name, self.backing_format)

    @classmethod
    def probe(cls, sample: Sample) -> int:
        return 100 if sample.head.startswith(_MAGIC) else 0

    @classmethod
    def open(cls, storage: Storage, around: Surroundings) -> Self:
        return cls(storage, Header.read(storage), around)

    def _check(self) -> CheckReport:
        return _Checker(self.storage, self.header).run()

    # ---- mapping ----------------------------------------------------------

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        return joined(self._pieces(offset, length))

    def _pieces(self, offset: int, length: int) -> Iterator[Run]:
        """Yield the runs of a range cluster by cluster, or as far as one L1 entry says nothing."""
        cluster = self.header.cluster_size
        end = offset + length
        while offset < end:
            table = self._entry(self.header.l1_offset, offset // self._span)
            if not table:
                stop = min(end, (offset // self._span + 1) * self._span)
                yield Run(stop - offset, Kind.ABSENT)
            else:
                self._check_table(table)
                stop = min(end, (offset // cluster + 1) * cluster)
                entry = self._entry(table, offset % self._span // cluster)
                yield self._run(entry, offset % cluster, stop - offset)
            offset = stop

    def _run(self, entry: int, inside: int, length: int) -> Run:
        if not entry:
            return Run(length, Kind.ABSENT)
        if entry == _ZERO:
            return Run(length, Kind.ZERO)
        if entry % self.cluster_size or not self.header.header_size <= entry < self.storage.size:
            raise DiskFormatError(
                f"{self.storage.name}: a cluster is at {entry:#x}, outside the file",
                path=self.storage.name,
                offset=entry,
            )
        return Run(length, Kind.DATA, entry + inside, self.storage)

    def _entry(self, table: int, index: int) -> int:
        page, inside = divmod(index, _PAGE)
        at = table + 8 * _PAGE * page
        items = self._pages.get(at)
        if items is None:
            count = min(_PAGE, self._entries - page * _PAGE)
            items = Table.load(self.storage, at, count, "Q", big_endian=False).items
            if len(self._pages) >= _PAGES_KEPT:
                for old in list(self._pages)[: _PAGES_KEPT // 2]:
                    self._pages.pop(old, None)
            self._pages[at] = items
        return items[inside]

    def _check_table(self, at: int) -> None:
        header = self.header
        end = at + header.table_size
        if at % header.cluster_size or at < header.header_size or end > self.storage.size:
            raise DiskFormatError(
                f"{self.storage.name}: a table is at {at:#x}, outside the file or misaligned",
                path=self.storage.name,
                offset=at,
            )


class _Checker:
    """One run over one image: what leads nowhere, what is used twice, what nothing names.

    Counts are those of QEMU (block/qed-check.c).
    """

    def __init__(self, storage: Storage, header: Header) -> None:
        self._storage = storage
        self._header = header
        clusters = -(-storage.size // header.cluster_size)
        if clusters > _MOST_CHECKED:
            raise DiskUnsupportedError(f"{storage.name} has too many clusters to check")
        self._used = bytearray(clusters)
        self._report = CheckReport(total_clusters=-(-header.size // header.cluster_size))

    def run(self) -> CheckReport:
        header, report = self._header, self._report
        self._use(header.l1_offset, header.table_size, "the L1 table")
        for at in self._table(header.l1_offset):
            if not self._is_place(at, header.table_size):
                report.error(f"an L2 table is at {at:#x}, outside the file or misaligned")
            elif self._use(at, header.table_size, "an L2 table"):
                self._walk(self._table(at))
        # A cluster that ends behind the file is nobody's loss.
        first, whole = (n // header.cluster_size for n in (header.header_size, self._storage.size))
        unused = self._used.count(0, first, whole)
        if unused:
            report.leak(f"{unused} clusters belong to nobody", unused)
        return report

    def _walk(self, entries: Iterator[int]) -> None:
        report, size = self._report, self._header.cluster_size
        last = 0
        for at in entries:
            if at == _ZERO:
                continue
            report.allocated_clusters += 1
            report.fragmented_clusters += bool(last) and last + size != at
            last = at
            if self._is_place(at, size):
                self._use(at, size, "a cluster")
            else:
                report.error(f"a cluster is at {at:#x}, outside the file or misaligned")

    def _table(self, at: int) -> Iterator[int]:
        """Yield the entries of a table that are not zero."""
        count = self._header.table_size // 8
        for first in range(0, count, _PAGE):
            place, length = at + 8 * first, min(_PAGE, count - first)
            items = Table.load(self._storage, place, length, "Q", big_endian=False).items
            yield from filter(None, items)

    def _is_place(self, at: int, length: int) -> bool:
        header = self._header
        last = at + length - header.cluster_size
        aligned = at % header.cluster_size == 0
        return aligned and header.header_size <= at and last < self._storage.size

    def _use(self, at: int, length: int, what: str) -> bool:
        """Note that a range is used; False, with an error for each cluster, when it is already."""
        sound = True
        first = at // self._header.cluster_size
        for number in range(first, first + length // self._header.cluster_size):
            if self._used[number]:
                where = number * self._header.cluster_size
                self._report.error(f"{what} at {where:#x} lies over something else")
                sound = False
            self._used[number] = 1
        return sound
