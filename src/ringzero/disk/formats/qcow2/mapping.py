"""From guest offsets to host clusters: the L1 table and its L2 tables (qcow2, "Cluster mapping").

L2 tables are cached whole, as arrays. New tables (those that the L1 table in
the image does not refer to yet) are kept apart from changed ones, because they
are written before, and the others after, everything they point at is durable.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

from ringzero.disk.contract import Kind, Run
from ringzero.disk.formats.qcow2.header import EXTERNAL_DATA, Header
from ringzero.disk.formats.qcow2.refcounts import Refcounts
from ringzero.disk.mapped import SPOT_ABSENT
from ringzero.disk.storage import Storage
from ringzero.disk.tables import Table
from ringzero.errors import DiskFormatError
from ringzero.units import MIB

# L1 and L2 entries: "bits 9-55: offset", flags above and below.
OFFSET = 0x00FF_FFFF_FFFF_FE00
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1

SUBCLUSTERS = 32
# The second half of an extended entry: bits 0-31 allocated, bits 32-63 reads as zeroes.
ALL_ALLOCATED = 0xFFFF_FFFF
ALL_ZERO = 0xFFFF_FFFF << 32

# L2 tables kept in memory: enough for 256 GiB of 64 KiB clusters. Changed
# ones stay until they are written, which happens at half of this.
CACHE_BYTES = 32 * MIB
# What a cached table costs besides its entries.
_TABLE_OVERHEAD = 400


class Mapping:
    """The active L1 table and its L2 tables.

    `forget` is called with entries that no table holds any more. Reading
    needs no lock; changing needs the disk's `_alloc`.
    """

    def __init__(
        self,
        storage: Storage,
        data: Storage,
        header: Header,
        refcounts: Refcounts,
        forget: Callable[[int], None],
    ) -> None:
        self.storage = storage
        self.data = data
        self.header = header
        self.refcounts = refcounts
        self.forget = forget
        self.external = bool(header.incompatible & EXTERNAL_DATA)
        self.cluster_bits = header.cluster_bits
        self.cluster_size = header.cluster_size
        self.words = 2 if header.extended else 1
        self.l2_shift = header.cluster_bits + header.l2_bits
        self.zero_flag = ZERO if header.version >= 3 else 0
        self.l2_bits = header.l2_bits
        self._index_mask = (1 << self.l2_bits) - 1
        self.limit = max(4, CACHE_BYTES // (self.cluster_size + _TABLE_OVERHEAD))
        self.l1 = Table.load(storage, header.l1_offset, header.l1_size, "Q", big_endian=True)
        self._cache: dict[int, Table] = {}
        self._new: set[int] = set()
        self._dirty: set[int] = set()

    # ---- tables -----------------------------------------------------------

    def table(self, number: int) -> Table | None:
        """Return the L2 table of the L1 entry `number`, None when there is none."""
        found = self._cache.get(number)
        if found is not None:
            return found
        entry = self.l1.items[number]
        offset = entry & OFFSET
        if not offset:
            return None
        found = self.read_table(offset)
        if len(self._cache) >= self.limit:
            self._evict()
        # Another thread may have been faster, and its table changed since.
        return self._cache.setdefault(number, found)

    def read_table(self, offset: int) -> Table:
        """Read an L2 table, which may be another one than an active one."""
        if offset & (self.cluster_size - 1) or offset >= self.storage.size:
            raise DiskFormatError(
                f"{self.storage.name}: an L2 table is at {offset:#x}, "
                "which is not aligned or behind the end of the file",
                hint="run `ringzero disk check`",
                path=self.storage.name,
                offset=offset,
            )
        count = self.cluster_size >> 3
        return Table.load(self.storage, offset, count, "Q", big_endian=True)

    def _evict(self) -> None:
        """Drop the oldest half of the tables that are as they are in the image."""
        clean = [n for n in self._cache if n not in self._dirty and n not in self._new]
        for number in clean[: max(1, len(clean) // 2)]:
            self._cache.pop(number, None)

    def table_to_change(self, number: int) -> Table:
        """Return the L2 table `number` to be changed: made, or copied when a snapshot has it."""
        entry = self.l1.items[number]
        table = self.table(number)
        if table is not None and entry & COPIED:
            if number not in self._new:
                self._dirty.add(number)
            return table
        cluster, _ = self.refcounts.allocate(1)
        self.refcounts.guard.add(cluster)
        offset = cluster << self.cluster_bits
        if table is None:
            items = array("Q", bytes(self.cluster_size))
        else:
            # What a shared table points at is shared too.
            items = array("Q", [value & ~COPIED for value in table.items])
            if self.words == 2:
                items[1::2] = table.items[1::2]
            self.refcounts.guard.discard((entry & OFFSET) >> self.cluster_bits)
            self.forget(entry & OFFSET)
        table = Table(self.storage, offset, items, big_endian=True)
        table.mark(0, len(items))
        self._cache[number] = table
        self._new.add(number)
        self._dirty.discard(number)
        self.l1.set(number, offset | COPIED)
        return table

    def retag(self, number: int, place: int, entry: int) -> None:
        """Change only the flags of a word of the L2 table `number`, shared or not."""
        self._cache[number].set(place, entry)
        if number not in self._new:
            self._dirty.add(number)

    def drop_table(self, number: int) -> None:
        """Take the L2 table `number` out; the caller has forgotten it and what it points at."""
        self._cache.pop(number, None)
        self._new.discard(number)
        self._dirty.discard(number)
        self.l1.set(number, 0)

    def replace_l1(self, items: array[int], offset: int) -> None:
        """Take another L1 table, which is in the image at `offset` already."""
        self.l1 = Table(self.storage, offset, items, big_endian=True)
        self._cache.clear()
        self._new.clear()
        self._dirty.clear()

    # ---- writing ----------------------------------------------------------

    @property
    def dirty(self) -> bool:
        return bool(self._new or self._dirty or self.l1.dirty)

    @property
    def crowded(self) -> bool:
        """Whether so many tables have changed that they should be written."""
        return len(self._new) + len(self._dirty) > self.limit // 2

    def write_new(self) -> None:
        """Write the new tables. Nothing durable refers to them."""
        for number in self._new:
            self._cache[number].write_back()

    def write_rest(self) -> None:
        """Write the changed tables and the L1 table; what they refer to is durable."""
        self._new.clear()
        for number in sorted(self._dirty):
            self._cache[number].write_back()
        self._dirty.clear()
        self.l1.write_back()

    # ---- looking up -------------------------------------------------------

    def spot(self, offset: int, length: int, writing: bool) -> int | None:
        """Return the host offset of a range of one cluster; see `MappedDisk._spot`."""
        table = self._cache.get(offset >> self.l2_shift)
        inside = self.cluster_size - 1
        within = offset & inside
        if within + length > self.cluster_size:
            return None
        if table is None:
            known = writing or self.l1.items[offset >> self.l2_shift] & OFFSET
            return None if known else SPOT_ABSENT
        if self.words == 2:
            return None
        entry = table.items[(offset >> self.cluster_bits) & self._index_mask]
        if not entry and not writing:
            return SPOT_ABSENT
        host = entry & OFFSET
        if not host or host & inside or entry & (COMPRESSED | ZERO):
            return None
        if writing:
            if not entry & COPIED or host >= self.data.size:
                return None
            if not self.l1.items[offset >> self.l2_shift] & COPIED:
                return None
            if host >> self.cluster_bits in self.refcounts.guard and not self.external:
                return None
        return host + within

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """Yield what this layer says about a guest range; see `Disk._runs`.

        The `host` of a COMPRESSED run is the whole L2 entry.
        """
        end = offset + length
        shift = self.l2_shift
        l1 = self.l1.items
        while offset < end:
            number = offset >> shift
            table = self.table(number)
            if table is not None:
                stop = min(end, (number + 1) << shift)
                if self.words == 2:
                    yield from self._extended_runs(table.items, offset, stop)
                else:
                    yield from self._standard_runs(table.items, offset, stop)
            else:
                last = (end - 1) >> shift
                while number < last and not l1[number + 1] & OFFSET:
                    number += 1
                stop = min(end, (number + 1) << shift)
                yield Run(stop - offset, Kind.ABSENT)
            offset = stop

    def _standard_runs(self, items: array[int], offset: int, end: int) -> Iterator[Run]:
        bits = self.cluster_bits
        size = self.cluster_size
        inside = size - 1
        data = self.data
        # File offsets from here on are not there yet; a write must not make a huge file.
        file_end = data.size + inside & ~inside
        l1_copied = self.l1.items[offset >> self.l2_shift] & COPIED
        first = (offset >> self.l2_shift) << self.l2_bits
        index = (offset >> bits) - first
        last = ((end - 1) >> bits) - first
        while index <= last:
            entry = items[index]
            stop = index + 1
            host = entry & OFFSET
            if entry & COMPRESSED:
                kind = Kind.COMPRESSED
            elif entry & self.zero_flag:
                kind = Kind.ZERO
                # A cluster that is kept for later may lie below.
                host, expected = entry & OFFSET, entry & OFFSET
                while stop <= last and items[stop] & (ZERO | COMPRESSED) == ZERO:
                    expected += size if host else 0
                    if items[stop] & OFFSET != expected:
                        break
                    stop += 1
            elif host or (self.external and entry & COPIED):
                kind = Kind.DATA
                expected = entry + size
                while stop <= last and items[stop] == expected:
                    expected += size
                    stop += 1
            else:
                kind = Kind.ABSENT
                while stop <= last and not items[stop]:
                    stop += 1
            run_end = min(end, (first + stop) << bits)
            length = run_end - offset
            if kind is Kind.DATA:
                if host & inside:
                    raise self._misaligned(offset, host)
                host += offset & inside
                writable = bool(l1_copied and entry & COPIED) and (
                    host + length <= file_end or self.external
                )
                if writable:
                    self._keep_off(host, length)
                yield Run(length, kind, host, data, writable)
            elif kind is Kind.COMPRESSED:
                yield Run(length, kind, entry, self.storage)
            elif kind is Kind.ZERO and host:
                yield Run(length, kind, host + (offset & inside), data)
            else:
                yield Run(length, kind)
            offset = run_end
            index = stop

    def _extended_runs(self, items: array[int], offset: int, end: int) -> Iterator[Run]:
        bits = self.cluster_bits - 5
        inside = self.cluster_size - 1
        file_end = self.data.size + inside & ~inside
        l1_copied = self.l1.items[offset >> self.l2_shift] & COPIED
        mask = (1 << self.l2_bits) - 1
        held: Run | None = None
        while offset < end:
            index = (offset >> self.cluster_bits) & mask
            entry, bitmap = items[2 * index], items[2 * index + 1]
            cluster_end = min(end, (offset | inside) + 1)
            if entry & COMPRESSED:
                run = Run(cluster_end - offset, Kind.COMPRESSED, entry, self.storage)
            else:
                run = self._subcluster_run(entry, bitmap, offset, cluster_end, bits)
                if run.kind is Kind.DATA:
                    host = run.host or 0
                    writable = bool(l1_copied and entry & COPIED) and (
                        host + run.length <= file_end or self.external
                    )
                    if writable:
                        self._keep_off(host, run.length)
                    run = Run(run.length, Kind.DATA, host, self.data, writable)
            offset += run.length
            if held is None:
                held = run
            elif (
                held.kind is run.kind
                and held.writable == run.writable
                and held.kind is not Kind.COMPRESSED
                and run.host == (None if held.host is None else held.host + held.length)
            ):
                held = held._replace(length=held.length + run.length)
            else:
                yield held
                held = run
        if held is not None:
            yield held

    def _subcluster_run(self, entry: int, bitmap: int, offset: int, end: int, bits: int) -> Run:
        """Return the run of like subclusters of one cluster that begins at `offset`."""
        inside = self.cluster_size - 1
        first = (offset & inside) >> bits
        last = ((end - 1) & inside) >> bits
        state = bitmap >> first & 0x1_0000_0001
        stop = first + 1
        while stop <= last and bitmap >> stop & 0x1_0000_0001 == state:
            stop += 1
        length = min(end, (offset & ~inside) + (stop << bits)) - offset
        host = entry & OFFSET
        if not state or state == 1 << 32:
            # A cluster is there as a whole, for those of its subclusters that hold data.
            place = host + (offset & inside) if host else None
            storage = self.data if host else None
            return Run(length, Kind.ZERO if state else Kind.ABSENT, place, storage)
        if state != 1 or host & inside or not (host or self.external):
            raise self._misaligned(offset, host)
        return Run(length, Kind.DATA, host + (offset & inside))

    def _keep_off(self, host: int, length: int) -> None:
        """Raise DiskFormatError when data in place would lie over metadata."""
        guard = self.refcounts.guard
        first = host >> self.cluster_bits
        last = (host + length - 1) >> self.cluster_bits
        if guard and not self.external and not guard.isdisjoint(range(first, last + 1)):
            raise self.refcounts.over_metadata(first)

    def _misaligned(self, offset: int, host: int) -> DiskFormatError:
        return DiskFormatError(
            f"{self.storage.name}: the L2 entry of guest offset {offset:#x} makes no sense "
            f"(host offset {host:#x})",
            hint="run `ringzero disk check`",
            path=self.storage.name,
            offset=offset,
        )
