"""Verifying and mending a sparse extent.

Errors are grains and grain tables that lie outside the file, over structures,
or over one another. A second copy that differs from the first is spare space
gone stale, which a crash may leave, and counts as a leak; so do grains that no
table names and that take room on the host. Mending takes a broken table from
its second copy, gives grains that share their space places of their own, and
gives up those that lead nowhere.
"""

from __future__ import annotations

from array import array
from itertools import pairwise

from ringzero.disk.contract import SECTOR, CheckReport, Repair
from ringzero.disk.formats.vmdk.extents import SparseExtent
from ringzero.disk.gaps import copy_bytes, data_in, gaps
from ringzero.disk.tables import Table
from ringzero.errors import DiskFormatError


def inspect(extent: SparseExtent, repair: Repair, report: CheckReport) -> None:
    """Add what is wrong with an extent to `report`, and mend it."""
    report.total_clusters += -(-extent.size // extent.cluster_size)
    with extent.at_rest():
        ExtentChecker(extent, repair, report).run()
        if report.errors_fixed:
            extent.forget_unsafe()


class ExtentChecker:
    """One run over one extent, which is at rest."""

    def __init__(self, extent: SparseExtent, repair: Repair, report: CheckReport) -> None:
        self.extent = extent
        self.storage = extent.storage
        self.report = report
        # Packed grains are never written in place.
        self.mend = repair is Repair.ALL and not extent.header.compressed
        self.mend_leaks = repair is not Repair.NOTHING
        self.layout = extent.layout()
        self._sectors = extent.header.grain // SECTOR
        # (sector, table, place) of every grain.
        self._found: list[tuple[int, int, int]] = []

    def run(self) -> None:
        header, report = self.extent.header, self.report
        before = report.errors_fixed
        if self.layout.overlap:
            report.error(f"{self.storage.name}: its structures lie over one another")
        for number in range(header.tables):
            table = self._sound_table(number)
            if table is not None:
                self._walk(number, table.items)
        self._separate()
        if report.errors_fixed > before:
            self.extent._write_back()
            self.storage.flush()
        if not header.compressed:
            self._find_leaks()
            self._compare_copies()

    def _sound_table(self, number: int) -> Table | None:
        extent = self.extent
        try:
            return extent._table(number)
        except DiskFormatError as fault:
            second = self._second_copy(number)
            self.report.error(fault.message, fixed=self.mend)
            if self.mend:
                extent.replace_table(number, second)
            return second

    def _second_copy(self, number: int) -> Table | None:
        try:
            return self.extent._table_of(self.extent.redundant, number)
        except DiskFormatError:
            return None

    def _walk(self, number: int, items: array[int]) -> None:
        report, grain = self.report, self.extent.header.grain
        compressed = self.extent.header.compressed
        zero = 1 if self.extent.zero_grains else 0
        limit = self.storage.size // SECTOR
        unsafe = self.layout.unsafe(items) if not compressed else set()
        spare: Table | None = None
        for place, entry in enumerate(items):
            if entry <= zero:
                continue
            report.allocated_clusters += 1
            report.compressed_clusters += compressed
            report.image_end = max(report.image_end, entry * SECTOR + grain)
            if entry < limit and entry not in unsafe:
                self._found.append((entry, number, place))
                continue
            where = "outside the file" if entry >= limit else "over its structures"
            report.error(
                f"{self.storage.name}: a grain is at {entry * SECTOR:#x}, {where}",
                fixed=self.mend,
            )
            if self.mend:
                spare = spare or self._second_copy(number)
                other = spare.items[place] if spare is not None else 0
                good = 1 < other < limit and not self.layout.covers(other * SECTOR, grain)
                self.extent.set_entry(number, place, other if good else 0)
                if good:
                    self._found.append((other, number, place))

    def _separate(self) -> None:
        """Find grains that share space; all but the first get a copy."""
        if self.extent.header.compressed:
            self._separate_packed()
            return
        end = -1
        for entry, number, place in sorted(self._found):
            if entry >= end:
                end = entry + self._sectors
                continue
            what = "is used more than once" if entry + self._sectors == end else "lies over another"
            self.report.error(f"the grain at {entry * SECTOR:#x} {what}", fixed=self.mend)
            if self.mend:
                grain = self.extent.header.grain
                host = -(-self.storage.size // grain) * grain
                self.extent._check_end(host + grain)
                copy_bytes(self.storage, entry * SECTOR, host, grain)
                self.extent.set_entry(number, place, host // SECTOR)
                self._found.append((host // SECTOR, number, place))

    def _separate_packed(self) -> None:
        """Find packed grains that are named twice; an image of that kind is not written."""
        found = sorted(entry for entry, _, _ in self._found)
        for first, second in pairwise(found):
            if first == second:
                self.report.error(f"the grain at {first * SECTOR:#x} is used more than once")

    def _find_leaks(self) -> None:
        grain = self.extent.header.grain
        own = [(entry * SECTOR, entry * SECTOR + grain) for entry, _, _ in self._found]
        own += [(host, host + grain) for host in self.extent.pending()]
        start = min((low for low, _ in own), default=self.storage.size)
        for low, high in gaps([*own, *self.layout], start, self.storage.size):
            wasted = data_in(self.storage, low, high) if high - low >= grain else 0
            if wasted:
                count = -(-wasted // grain)
                text = f"{count} grains between {low:#x} and {high:#x} belong to nobody"
                self.report.leak(text, count, fixed=self.mend_leaks)
                if self.mend_leaks:
                    self.storage.write_zeroes(low, high - low)

    def _compare_copies(self) -> None:
        """Compare the second copies of all tables with the first ones."""
        extent = self.extent
        if extent.redundant is None:
            return
        for number in range(extent.header.tables):
            try:
                first = extent._table(number)
            except DiskFormatError:
                # Said already, and nothing to compare with.
                continue
            second = self._second_copy(number)
            if first is None or (second is not None and first.items == second.items):
                continue
            self.report.leak(
                f"the second copy of grain table {number} is out of date", fixed=self.mend_leaks
            )
            if self.mend_leaks:
                extent.renew_copy(number, first)
        if self.mend_leaks:
            extent.redundant.write_back()
            self.storage.flush()
