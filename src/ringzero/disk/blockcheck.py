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

from ringzero.disk.blocks import BlockDisk
from ringzero.disk.contract import CheckReport, Repair
from ringzero.disk.gaps import data_in
from ringzero.errors import DiskFormatError


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


class CheckedBlockDisk(BlockDisk):
    """An image in large blocks that can be verified and mended."""

    def check(self, repair: Repair = Repair.NOTHING) -> CheckReport:
        """Look for blocks that lead nowhere or share space, and for space that nobody uses."""
        if self.read_only and repair is not Repair.NOTHING:
            raise self._read_only_error()
        if not self.read_only:
            self._flush()
        with self._gate.alone(), self._alloc:
            return BlockChecker(self, repair).run()
