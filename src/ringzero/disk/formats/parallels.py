"""Parallels expandable images, ".hds" (QEMU, docs/interop/parallels.txt). Read only.

One table of 32-bit little-endian numbers says where clusters are: in sectors in images of the
first kind, in clusters in those of the second.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from ringzero.disk.contract import SECTOR, CheckReport, Kind, Run, Sample, Surroundings
from ringzero.disk.paged import PagedTable
from ringzero.disk.readonly import ReadOnlyDisk, joined
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import Storage
from ringzero.disk.tables import Table
from ringzero.errors import DiskFormatError, DiskUnsupportedError
from ringzero.units import GIB

_IN_SECTORS, _IN_CLUSTERS = b"WithoutFreeSpace", b"WithouFreSpacExt"
# magic, version, heads, cylinders, sectors of a cluster, entries, sectors of the disk, in use,
# first sector of data, flags, place of the extension.
_HEADER = struct.Struct("<16sIIIIIQIIIQ")
_VERSION = 2
_IN_USE = 0x746F_6E59
# QEMU's bound; real ones have 1 MiB.
_MAX_CLUSTER = 2 * GIB
# Entries of the table that are looked at together.
_PAGE = 8192


@dataclass(frozen=True)
class Header:
    """The header; `unit` is what the table counts in. Sizes in bytes."""

    cluster_size: int
    entries: int
    size: int
    unit: int
    in_use: bool

    @classmethod
    def read(cls, storage: Storage) -> Header:
        """Read and verify the header; DiskFormatError, DiskUnsupportedError."""
        name = storage.name
        (magic, version, _, _, tracks, entries, sectors, in_use, _, _, _) = _HEADER.unpack(
            storage.read(0, _HEADER.size)
        )
        if magic not in (_IN_SECTORS, _IN_CLUSTERS):
            raise DiskFormatError(f"{name} is no Parallels image", path=name)
        if version != _VERSION:
            raise DiskUnsupportedError(f"{name}: Parallels version {version}", path=name)
        if magic == _IN_SECTORS:
            # Only half of the field counted then.
            sectors &= 0xFFFF_FFFF
        cluster = tracks * SECTOR
        wrong = None
        if not SECTOR <= cluster < _MAX_CLUSTER:
            wrong = f"clusters of {tracks} sectors"
        elif sectors >= 1 << 53 or sectors > entries * tracks:
            wrong = f"{entries} clusters of {tracks} sectors for {sectors}"
        elif _HEADER.size + 4 * entries > storage.size:
            wrong = "a table outside the file"
        if wrong:
            raise DiskFormatError(f"{name}: {wrong} make no sense", path=name)
        unit = SECTOR if magic == _IN_SECTORS else cluster
        return cls(cluster, entries, sectors * SECTOR, unit, in_use == _IN_USE)


@FORMATS.register("parallels")
class ParallelsDisk(ReadOnlyDisk):
    """An open Parallels image."""

    format = "parallels"

    def __init__(self, storage: Storage, header: Header, around: Surroundings) -> None:
        super().__init__(
            storage, around, size=header.size, cluster_size=header.cluster_size,
            dirty=header.in_use,
        )  # fmt: skip
        self.header = header
        self._table = PagedTable(storage, _HEADER.size, header.entries, "I", big_endian=False)

    @classmethod
    def probe(cls, sample: Sample) -> int:
        return 100 if sample.head.startswith((_IN_SECTORS, _IN_CLUSTERS)) else 0

    @classmethod
    def open(cls, storage: Storage, around: Surroundings) -> Self:
        return cls(storage, Header.read(storage), around)

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        return joined(self._pieces(offset, length))

    def _pieces(self, offset: int, length: int) -> Iterator[Run]:
        """Yield the runs of a range cluster by cluster."""
        cluster, unit = self.header.cluster_size, self.header.unit
        first = _HEADER.size + 4 * self.header.entries
        end = offset + length
        while offset < end:
            index, inside = divmod(offset, cluster)
            run = min(end - offset, cluster - inside)
            host = self._table[index] * unit
            if not host:
                yield Run(run, Kind.ABSENT)
            elif not first <= host < self.storage.size:
                raise DiskFormatError(
                    f"{self.storage.name}: a cluster is at {host:#x}, outside the file or over "
                    "its table",
                    path=self.storage.name,
                    offset=host,
                )
            else:
                yield Run(run, Kind.DATA, host + inside, self.storage)
            offset += run

    def _check(self) -> CheckReport:
        """Verify the table, with QEMU's counts (block/parallels.c); shared clusters are errors."""
        header, end = self.header, self.storage.size
        report = CheckReport(total_clusters=header.entries)
        if header.in_use:
            report.error("the image was not closed properly")
        first = _HEADER.size + 4 * header.entries
        used: set[int] = set()
        last = before = highest = 0
        for index, host in self._places():
            if not first <= host < end:
                report.error(f"cluster {index} is at {host:#x}, outside the file or over its table")
                continue
            if host in used:
                report.error(f"the cluster at {host:#x} is used more than once")
            used.add(host)
            report.allocated_clusters += 1
            if before and last == index - 1:
                report.fragmented_clusters += before + header.cluster_size != host
            last, before, highest = index, host, max(highest, host)
        report.image_end = highest + header.cluster_size
        if end > report.image_end:
            wasted = end - report.image_end
            count = -(-wasted // header.cluster_size)
            report.leak(f"{wasted} bytes at the end of the image belong to nobody", count)
        return report

    def _places(self) -> Iterator[tuple[int, int]]:
        """Yield (number, place in the file) of all clusters that have one."""
        count, unit = self.header.entries, self.header.unit
        for first in range(0, count, _PAGE):
            items = Table.load(
                self.storage, _HEADER.size + 4 * first, min(_PAGE, count - first), "I",
                big_endian=False,
            ).items  # fmt: skip
            if any(items):
                yield from ((first + n, item * unit) for n, item in enumerate(items) if item)
