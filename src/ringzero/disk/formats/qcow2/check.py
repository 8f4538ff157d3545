"""Verifying and mending: every host cluster is counted as often as it is referred to.

`errors` are what may lose or mix data: counts that are too low, entries that
make no sense, COPIED flags of clusters that are shared. `leaks` are what only costs
space: counts that are too high, clusters of one owner that have lost their COPIED flag.
"""

from __future__ import annotations

from array import array
from collections import Counter

from ringzero.disk.contract import CheckReport, Repair
from ringzero.disk.formats.qcow2.bitmaps import Bitmaps
from ringzero.disk.formats.qcow2.compressed import place_of
from ringzero.disk.formats.qcow2.create import plan_refcounts, write_refcounts
from ringzero.disk.formats.qcow2.header import CORRUPT, DIRTY
from ringzero.disk.formats.qcow2.image import Qcow2Image
from ringzero.disk.formats.qcow2.mapping import COMPRESSED, COPIED, OFFSET
from ringzero.disk.formats.qcow2.refcounts import REFTABLE_OFFSET, Refcounts
from ringzero.disk.formats.qcow2.snapshots import read_table
from ringzero.errors import DiskError, DiskFormatError

_COUNT_MAX = 0xFFFF_FFFF


class Checker:
    """One run over one image. The disk is quiet and its tables are written."""

    def __init__(self, disk: Qcow2Image) -> None:
        self.disk = disk
        self.header = disk.header
        self.bitmaps = Bitmaps(disk)
        self.refcounts = disk.refcounts
        self.per_block = disk.refcounts.per_block
        self.report = CheckReport()
        # References found, in pieces of `per_block` clusters.
        self.found: dict[int, array[int]] = {}
        self.broken_blocks = False
        self.file_clusters = -(-disk.storage.size // disk.cluster_size)

    def run(self, repair: Repair) -> CheckReport:
        self._count_all()
        mend = repair is Repair.ALL and (self.broken_blocks or self._uncounted())
        if mend:
            self._compare(Repair.ALL, rebuild=True)
            self._rebuild()
        else:
            self._compare(repair, rebuild=False)
        self._check_flags(repair)
        if repair is not Repair.NOTHING:
            self.disk._write_back()
            self.disk._flush_storages()
            self._clear_marks()
        return self.report

    # ---- counting ---------------------------------------------------------

    def _refer(self, offset: int, length: int, times: int = 1) -> None:
        """Count the clusters of a range of the file as referred to."""
        bits = self.header.cluster_bits
        for cluster in range(offset >> bits, ((offset + length - 1) >> bits) + 1):
            index, place = divmod(cluster, self.per_block)
            piece = self.found.get(index)
            if piece is None:
                piece = self.found[index] = array("I", bytes(4 * self.per_block))
            piece[place] = min(_COUNT_MAX, piece[place] + times)

    def _sound(self, offset: int, length: int, what: str) -> bool:
        """Whether a range is aligned and in the file; if not, it is an error."""
        end = self.file_clusters << self.header.cluster_bits
        if offset & (self.disk.cluster_size - 1) == 0 and offset + length <= end:
            return True
        self.report.error(f"{what} is at {offset:#x}: not aligned or behind the end of the file")
        return False

    def _count_all(self) -> None:
        header, size = self.header, self.disk.cluster_size
        self._refer(0, size)
        l1_tables = Counter({(header.l1_offset, header.l1_size): 1})
        try:
            entries, length = read_table(self.disk)
        except DiskFormatError as fault:
            self.report.error(fault.message)
            entries, length = [], 0
        if length:
            self._refer(header.snapshots_offset, length)
        l1_tables.update((entry.l1_offset, entry.l1_size) for entry in entries)
        l2_tables: Counter[int] = Counter()
        for (offset, count), times in l1_tables.items():
            if count and self._sound(offset, count * 8, "an L1 table"):
                self._refer(offset, count * 8, times)
                for value in self._words(offset, count):
                    if value & OFFSET:
                        l2_tables[value & OFFSET] += times
        # What is counted for people is what the disk has now, and no snapshot.
        active = {value & OFFSET for value in self.disk.map.l1.items}
        self.report.total_clusters = -(-self.disk.size // size)
        for offset, times in l2_tables.items():
            if self._sound(offset, size, "an L2 table"):
                self._refer(offset, size, times)
                items = self._words(offset, size >> 3)[:: self.disk.map.words]
                self._count_table(items, times)
                if offset in active:
                    self._count_clusters(items)
        self._count_bitmaps()
        self._count_refcounts()

    def _words(self, offset: int, count: int) -> array[int]:
        items = array("Q")
        items.frombytes(self.disk.storage.read(offset, count * 8))
        items.byteswap()
        return items

    def _count_clusters(self, items: array[int]) -> None:
        """Count what is allocated, and what does not lie behind the cluster before."""
        report, size = self.report, self.disk.cluster_size
        expected = 0
        for entry in items:
            host = entry & OFFSET
            if entry & COMPRESSED:
                report.allocated_clusters += 1
                report.compressed_clusters += 1
                report.fragmented_clusters += 1
            elif host or (self.disk.map.external and entry & COPIED):
                report.allocated_clusters += 1
                report.fragmented_clusters += expected not in (0, host)
                expected = host + size

    def _count_table(self, items: array[int], times: int) -> None:
        bits, size = self.header.cluster_bits, self.disk.cluster_size
        external = self.disk.map.external
        for entry in items:
            if entry & COMPRESSED:
                at, length = place_of(entry, bits)
                if at + length > self.file_clusters << bits:
                    self.report.error(f"a compressed cluster at {at:#x} is behind the file's end")
                else:
                    self._refer(at, length, times)
            elif entry & OFFSET:
                if external:
                    continue
                host = entry & OFFSET
                if self._sound(host, size, "a cluster"):
                    self._refer(host, size, times)

    def _count_bitmaps(self) -> None:
        extension = self.header.bitmaps
        if extension is None:
            return
        try:
            bitmaps = self.bitmaps.read()
            self._refer(extension.directory_offset, extension.directory_size)
            for bitmap in bitmaps:
                if not bitmap.table_size:
                    continue
                table = self.bitmaps.table(bitmap)
                self._refer(bitmap.table_offset, bitmap.table_size * 8)
                for entry in table.items:
                    if entry & OFFSET and self._sound(
                        entry & OFFSET, self.disk.cluster_size, "a bitmap's data"
                    ):
                        self._refer(entry & OFFSET, self.disk.cluster_size)
        except DiskFormatError as fault:
            self.report.error(fault.message)

    def _count_refcounts(self) -> None:
        header, size = self.header, self.disk.cluster_size
        length = header.reftable_clusters * size
        if not length or not self._sound(header.reftable_offset, length, "the refcount table"):
            self.broken_blocks = True
            return
        self._refer(header.reftable_offset, length)
        seen: set[int] = set()
        for value in self.refcounts.table.items:
            offset = value & REFTABLE_OFFSET
            if not offset:
                continue
            if not self._sound(offset, size, "a refcount block"):
                self.broken_blocks = True
                continue
            if offset in seen:
                self.report.error(f"the refcount block at {offset:#x} is used twice")
                self.broken_blocks = True
            seen.add(offset)
            self._refer(offset, size)

    # ---- comparing --------------------------------------------------------

    def _uncounted(self) -> bool:
        """Whether clusters are in use that no refcount block covers."""
        return any(any(p) and self._block(i) is None for i, p in self.found.items())

    def _block(self, index: int) -> array[int] | None:
        try:
            block = self.refcounts.block(index)
        except DiskError:
            return None
        return block.items if block is not None else None

    def _compare(self, repair: Repair, *, rebuild: bool) -> None:
        filled = {n for n, v in enumerate(self.refcounts.table.items) if v & REFTABLE_OFFSET}
        for index in sorted(filled | set(self.found)):
            wanted, stored = self.found.get(index), self._block(index)
            used, counted = _used(wanted), _used(stored)
            # A leaked cluster is the image's until it is given back.
            last = max(used, counted) if repair is Repair.NOTHING else used
            if last:
                end = (index * self.per_block + last) << self.header.cluster_bits
                self.report.image_end = max(self.report.image_end, end)
            length = max(used, counted)
            want = wanted[:length] if wanted is not None else array("I", bytes(4 * length))
            have = stored[:length] if stored is not None else array("I", bytes(4 * length))
            if want == have:
                continue
            for place in range(length):
                if have[place] != want[place]:
                    cluster = index * self.per_block + place
                    self._mismatch(cluster, have[place], want[place], repair, rebuild)

    def _mismatch(self, cluster: int, have: int, want: int, repair: Repair, rebuild: bool) -> None:
        leak = have > want
        fix = repair is Repair.ALL or (leak and repair is Repair.LEAKS)
        fixable = fix and want <= self.refcounts.maximum
        text = f"cluster {cluster} has refcount {have} and {want} references"
        if leak:
            self.report.leak(text, fixed=fixable)
        else:
            self.report.error(text, fixed=fixable)
        if fixable and not rebuild:
            self.refcounts.set(cluster, want)

    def _rebuild(self) -> None:
        """Write a whole new refcount structure behind the end of the file."""
        header = self.header
        length = max(self.file_clusters, (max(self.found) + 1) * self.per_block)
        while length > self.file_clusters and not self._found(length - 1):
            length -= 1
        counts = [min(self._found(n), self.refcounts.maximum) for n in range(length)]
        self._drop_old_structure(counts)
        reftable, blocks = plan_refcounts(header, length)
        counts += [1] * (reftable + blocks)
        write_refcounts(self.disk.storage, header, counts, length, (reftable, blocks))
        self.disk.storage.flush()
        header.reftable_offset = length << header.cluster_bits
        header.reftable_clusters = reftable
        header.write(self.disk.storage)
        self.disk.storage.flush()
        self.disk.refcounts = self.refcounts = Refcounts(self.disk.storage, header)
        self.disk.map.refcounts = self.refcounts
        self.report.errors_fixed = self.report.errors

    def _found(self, cluster: int) -> int:
        piece = self.found.get(cluster // self.per_block)
        return piece[cluster % self.per_block] if piece is not None else 0

    def _drop_old_structure(self, counts: list[int]) -> None:
        header, bits = self.header, self.header.cluster_bits
        old = [header.reftable_offset + (n << bits) for n in range(header.reftable_clusters)]
        old += [value & REFTABLE_OFFSET for value in self.refcounts.table.items]
        for offset in old:
            cluster = offset >> bits
            if offset and offset & (self.disk.cluster_size - 1) == 0 and cluster < len(counts):
                counts[cluster] = max(0, counts[cluster] - 1)

    # ---- flags ------------------------------------------------------------

    def _check_flags(self, repair: Repair) -> None:
        """A COPIED flag says that there is exactly one reference.

        References count here, not refcounts: a change of snapshots that was cut short leaves
        counts too high, and flags that are right.
        """
        disk = self.disk
        if disk.map.external:
            return
        bits, step = self.header.cluster_bits, disk.map.words
        for number, l1_entry in enumerate(disk.map.l1.items):
            offset = l1_entry & OFFSET
            if not offset or not self._readable(offset):
                continue
            if self._flag_is_wrong(l1_entry, offset >> bits, f"L1 entry {number}", repair):
                disk.map.l1.set(number, l1_entry ^ COPIED)
            table = disk.map.table(number)
            assert table is not None
            for place in range(0, len(table.items), step):
                entry = table.items[place]
                if entry & COMPRESSED or not entry & OFFSET:
                    continue
                where = f"L2 entry {place // step} of table {number}"
                if self._flag_is_wrong(entry, (entry & OFFSET) >> bits, where, repair):
                    disk.map.retag(number, place, entry ^ COPIED)
            if disk.map.crowded:
                disk._write_back()

    def _readable(self, offset: int) -> bool:
        aligned = offset & (self.disk.cluster_size - 1) == 0
        return aligned and offset < self.disk.storage.size

    def _flag_is_wrong(self, entry: int, cluster: int, where: str, repair: Repair) -> bool:
        """Report a wrong COPIED flag; return whether it is to be changed."""
        single = self._found(cluster) == 1
        if single == bool(entry & COPIED):
            return False
        if single:
            fix = repair is not Repair.NOTHING
            self.report.leak(f"{where} lacks its COPIED flag", fixed=fix)
        else:
            fix = repair is Repair.ALL
            self.report.error(f"{where} has a COPIED flag and is shared", fixed=fix)
        return fix

    def _clear_marks(self) -> None:
        """Take the dirty and corrupt marks away when nothing is wrong any more."""
        header = self.header
        if self.report.errors == self.report.errors_fixed and header.incompatible & (
            DIRTY | CORRUPT
        ):
            header.incompatible &= ~(DIRTY | CORRUPT)
            header.write(self.disk.storage)
            self.disk.storage.flush()


def _used(counts: array[int] | None) -> int:
    """Return how many entries there are up to the last one that is not zero."""
    if counts is None:
        return 0
    return -(-len(counts.tobytes().rstrip(b"\0")) // counts.itemsize)
