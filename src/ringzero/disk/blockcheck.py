"""Verifying and mending images in large blocks, and finding the space that no block table names.

An error is a block that lies outside the file, over structures of the format,
or over another block. Mending gives each block that shares its space a place
of its own, with the bytes that it reads as now; a block that leads nowhere is
given up and reads as zeroes, or as the parent.

A leak is space between blocks that nothing names and that takes room on the
host. Mending turns it into holes; the next session that needs blocks uses it
anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ringzero.disk.contract import CheckReport, Repair
from ringzero.errors import DiskFormatError
from ringzero.units import MIB

if TYPE_CHECKING:
    from ringzero.disk.blocks import BlockDisk
    from ringzero.disk.storage import Storage

# What nearly all file systems allocate in.
_HOST_BLOCK = 4096

# What tables leave behind when they move; not worth a word.
_SCRAP = 16384

Range = tuple[int, int]


def gaps(taken: Iterable[Range], start: int, end: int) -> Iterator[Range]:
    """Yield the (start, end) of what lies between `start` and `end` and is not in `taken`."""
    for low, high in sorted(taken):
        if low > start:
            yield start, min(low, end)
        start = max(start, high)
        if start >= end:
            return
    if start < end:
        yield start, end


def data_in(storage: Storage, start: int, end: int) -> int:
    """Return how many bytes of a range of the file take room on the host.

    The edges may belong to a host block that is in use, and count for nothing; nor do scraps.
    """
    start = -(-start // _HOST_BLOCK) * _HOST_BLOCK
    there = max(0, min(end, storage.size) // _HOST_BLOCK * _HOST_BLOCK - start)
    found = sum(length for length, has_data in storage.extents(start, there) if has_data)
    return found if found > _SCRAP else 0


def copy_bytes(storage: Storage, source: int, target: int, length: int) -> None:
    """Copy a range of the file to another place in it."""
    for done in range(0, length, MIB):
        piece = min(MIB, length - done)
        storage.write(target + done, storage.read(source + done, piece))


class BlockChecker:
    """One run over one image. The gate is closed, `_alloc` is held, tables are written."""

    def __init__(self, disk: BlockDisk, repair: Repair) -> None:
        self.disk = disk
        self.repair = repair
        self.report = CheckReport(total_clusters=-(-disk.size // disk.block_size))
        # Space that blocks have already been found in: where it begins, in order of the disk.
        self._owned: list[tuple[int, int]] = []

    def run(self) -> CheckReport:
        mend = self.repair is Repair.ALL
        self._walk(mend)
        self._separate(mend)
        if mend and self.report.errors_fixed:
            self.disk._write_back()
            self.disk._flush_storages()
        self._find_leaks()
        return self.report

    def _walk(self, mend: bool) -> None:
        disk, report = self.disk, self.report
        for index in range(report.total_clusters):
            try:
                host = disk._block(index)
            except DiskFormatError as fault:
                report.error(fault.message, fixed=mend)
                if mend:
                    disk._begin()
                    disk._give_up(index)
                continue
            if host >= 0:
                report.allocated_clusters += 1
                report.image_end = max(report.image_end, host + disk.block_size)
                self._owned.append((host - disk.block_lead, index))

    def _separate(self, mend: bool) -> None:
        """Find blocks that share space; all but the first get a copy."""
        disk, unit = self.disk, self.disk.block_lead + self.disk.block_size
        end = -1
        for start, index in sorted(self._owned):
            if start >= end:
                end = start + unit
                continue
            same = start + unit == end
            what = "is used more than once" if same else "lies over another one"
            self.report.error(f"the block at {start + disk.block_lead:#x} {what}", fixed=mend)
            if mend:
                disk._begin()
                disk._move_block(index)

    def _find_leaks(self) -> None:
        disk, report = self.disk, self.report
        mend = self.repair is not Repair.NOTHING
        unit = disk.block_lead + disk.block_size
        for start, end in disk._gaps():
            if end - start < unit:
                continue
            wasted = data_in(disk.storage, start, end)
            if not wasted:
                continue
            count = -(-wasted // unit)
            report.leak(
                f"{count} blocks between {start:#x} and {end:#x} belong to nobody",
                count,
                fixed=mend,
            )
            if mend:
                disk.storage.write_zeroes(start, end - start)
        if report.leaks_fixed:
            disk._flush_storages()
