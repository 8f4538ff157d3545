"""Refcounts of host clusters, and the allocator on them ("Host cluster management").

Changes stay in memory until `write_back`. A cluster that is given out is free
in the image as it is on stable storage; one that is released keeps its count
until the caller says that nothing durable refers to it any more.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from ringzero.disk.contract import SECTOR
from ringzero.disk.formats.qcow2.header import MAX_REFTABLE_BYTES, Header
from ringzero.disk.storage import Storage
from ringzero.disk.tables import Table
from ringzero.errors import DiskError, DiskFormatError, DiskUnsupportedError

# Entries of the refcount table: "bits 9-63: offset into the image file".
REFTABLE_OFFSET = 0xFFFF_FFFF_FFFF_FE00

_TYPECODES = {8: "B", 16: "H", 32: "I", 64: "Q"}


class PackedTable(Table):
    """Counts of 1, 2 or 4 bits, several to a byte, the least significant bits first."""

    __slots__ = ("bits",)

    bits: int

    @classmethod
    def load_packed(cls, storage: Storage, offset: int, count: int, bits: int) -> PackedTable:
        table = cls(storage, offset, array("B"), big_endian=True)
        table.bits = bits
        mask = (1 << bits) - 1
        shifts = range(0, 8, bits)
        # One look-up per byte instead of one shift per count.
        spread = [bytes(byte >> shift & mask for shift in shifts) for byte in range(256)]
        packed = storage.read(offset, count * bits // 8)
        for start in range(0, len(packed), SECTOR):
            piece = packed[start : start + SECTOR]
            # Most of a large block is empty.
            counts = b"".join([spread[byte] for byte in piece]) if any(piece) else b""
            table.items.frombytes(counts.ljust(len(piece) * 8 // bits, b"\0"))
        table._low = count
        return table

    @classmethod
    def blank_packed(cls, storage: Storage, offset: int, count: int, bits: int) -> PackedTable:
        table = cls(storage, offset, array("B", bytes(count)), big_endian=True)
        table.bits = bits
        table.mark(0, count)
        return table

    def to_bytes(self, low: int = 0, high: int | None = None) -> bytes:
        each = 8 // self.bits
        part = self.items[low:high]
        packed = bytearray(len(part) // each)
        for position in range(each):
            shift = position * self.bits
            for number, value in enumerate(part[position::each]):
                packed[number] |= value << shift
        return bytes(packed)

    def write_back(self) -> None:
        if not self.dirty:
            return
        each = SECTOR * 8 // self.bits
        low = self._low // each * each
        high = min(len(self.items), -(-self._high // each) * each)
        self.storage.write(self.offset + low * self.bits // 8, self.to_bytes(low, high))
        self._low, self._high = len(self.items), 0


class Refcounts:
    """The refcount table and its blocks. Not locked: the disk's `_alloc` guards it.

    Clusters are numbered; number n lies at byte n << cluster_bits.
    """

    def __init__(self, storage: Storage, header: Header) -> None:
        self.storage = storage
        self.header = header
        self.bits = header.refcount_bits
        self.per_block = header.cluster_size * 8 // self.bits
        self.maximum = (1 << self.bits) - 1
        count = header.reftable_clusters << header.cluster_bits >> 3
        self.table = Table.load(storage, header.reftable_offset, count, "Q", big_endian=True)
        self._blocks: dict[int, Table] = {}
        self._dirty: set[int] = set()
        # The search for a free cluster starts here; everything below is taken.
        self._cursor = 0
        # The cluster that compressed data are being appended to, while it is in use.
        self.open_cluster: int | None = None
        # Clusters that hold metadata, over which nothing is written and which nothing frees;
        # empty until the disk is to be written. See `Qcow2Disk.watch`.
        self.guard: set[int] = set()
        # A table that has outgrown its place: where the old one was (first, count).
        self._old_place: tuple[int, int] | None = None

    # ---- blocks -----------------------------------------------------------

    def block(self, index: int) -> Table | None:
        """Return the refcount block `index`, None when all its counts are zero."""
        found = self._blocks.get(index)
        if found is not None:
            return found
        if index >= len(self.table.items):
            return None
        offset = self.table.items[index] & REFTABLE_OFFSET
        if not offset:
            return None
        if offset % self.header.cluster_size or offset >= self.storage.size:
            raise DiskFormatError(
                f"{self.storage.name}: refcount block {index} is at {offset:#x}, "
                "which is not aligned or behind the end of the file",
                hint="run `ringzero disk check --repair all`",
                path=self.storage.name,
            )
        if self.bits < 8:
            found = PackedTable.load_packed(self.storage, offset, self.per_block, self.bits)
        else:
            code = _TYPECODES[self.bits]
            found = Table.load(self.storage, offset, self.per_block, code, big_endian=True)
        self._blocks[index] = found
        return found

    def _new_block(self, index: int, cluster: int) -> Table:
        """Make the refcount block `index` at the free cluster `cluster`."""
        offset = cluster << self.header.cluster_bits
        if self.bits < 8:
            block: Table = PackedTable.blank_packed(self.storage, offset, self.per_block, self.bits)
        else:
            code = _TYPECODES[self.bits]
            block = Table.blank(self.storage, offset, self.per_block, code, big_endian=True)
        self._blocks[index] = block
        self._dirty.add(index)
        self.table.set(index, offset)
        self.guard.add(cluster)
        return block

    def get(self, cluster: int) -> int:
        """Return the refcount of a cluster."""
        block = self.block(cluster // self.per_block)
        return block.items[cluster % self.per_block] if block is not None else 0

    def add(self, cluster: int, change: int) -> int:
        """Change the refcount of a cluster by `change` and return it.

        Raises DiskFormatError below zero, DiskUnsupportedError above what the
        refcount width holds.
        """
        index, place = divmod(cluster, self.per_block)
        block = self.block(index)
        # What is counted once more has been counted before: its block is there.
        value = block.items[place] + change if block is not None else -1
        if block is None or value < 0:
            raise DiskFormatError(
                f"{self.storage.name}: cluster {cluster} is used but has refcount 0",
                hint="run `ringzero disk check --repair all`",
                path=self.storage.name,
            )
        if value > self.maximum:
            raise DiskUnsupportedError(
                f"{self.storage.name}: a refcount of {self.bits} bits cannot hold {value}",
                hint="convert the image with a larger refcount_bits",
                path=self.storage.name,
            )
        block.set(place, value)
        self._dirty.add(index)
        if value == 0:
            if cluster == self.open_cluster:
                self.open_cluster = None
            self._cursor = min(self._cursor, cluster)
        return value

    def set(self, cluster: int, value: int) -> None:
        """Set the refcount of a cluster (for repair)."""
        self.add(cluster, value - self.get(cluster))

    # ---- allocation -------------------------------------------------------

    def allocate(self, wanted: int) -> tuple[int, int]:
        """Take up to `wanted` free clusters in a row; return (first, how many), at least one.

        Raises DiskFormatError when one of them holds metadata: the counts are wrong.
        """
        first, count = self._take(wanted)
        if self.guard and not self.guard.isdisjoint(range(first, first + count)):
            raise self.over_metadata(first)
        return first, count

    def over_metadata(self, cluster: int) -> DiskFormatError:
        """Return the error for a cluster that is about to be overwritten and must not be."""
        return DiskFormatError(
            f"{self.storage.name}: data would be written over the metadata at or behind "
            f"{cluster << self.header.cluster_bits:#x}",
            hint="run `ringzero disk check --repair all`",
            path=self.storage.name,
            offset=cluster << self.header.cluster_bits,
        )

    def _take(self, wanted: int) -> tuple[int, int]:
        while True:
            index, place = divmod(self._cursor, self.per_block)
            block = self.block(index)
            if block is None:
                self._make_block(index)
                continue
            try:
                place = block.items.index(0, place)
            except ValueError:
                self._cursor = (index + 1) * self.per_block
                continue
            self._dirty.add(index)
            stop = place + 1
            if wanted == 1:
                block.set(place, 1)
                self._cursor = index * self.per_block + stop
                return index * self.per_block + place, 1
            limit = min(self.per_block, place + wanted)
            items = block.items
            while stop < limit and not items[stop]:
                stop += 1
            block.fill(place, array(items.typecode, [1]) * (stop - place))
            self._cursor = index * self.per_block + stop
            return index * self.per_block + place, stop - place

    def room_for(self, clusters: int) -> int:
        """Return by how many bytes the file grows, at most, when so many clusters are taken.

        With the blocks and the larger tables that count them, behind what is in the file.
        """
        size = self.header.cluster_size
        used = -(-self.storage.size // size)
        there = sum(entry & REFTABLE_OFFSET != 0 for entry in self.table.items)
        blocks = tables = 0
        while True:
            needed = -(-(used + clusters + blocks + tables) // self.per_block)
            entries, taken = len(self.table.items), 0
            while entries < needed:
                # As `_grow` does it; what a table leaves behind is not counted on.
                grown = -(-max(entries + 1, entries * 3 // 2) * 8 // size)
                entries, taken = grown * size // 8, taken + grown + 1
            if needed - there <= blocks and taken <= tables:
                return (clusters + blocks + tables) * size
            blocks, tables = max(blocks, needed - there), max(tables, taken)

    def allocate_row(self, count: int) -> int:
        """Take exactly `count` free clusters in a row; return the first (for tables)."""
        first, found = self.allocate(count)
        while found < count:
            start, more = self.allocate(count - found)
            if start == first + found:
                found += more
                continue
            # Not in a row: give the first piece back and go on from the second.
            for cluster in range(first, first + found):
                self.add(cluster, -1)
            self._cursor = start + more
            first, found = start, more
        return first

    def _make_block(self, index: int) -> Table:
        """Make room for the counts of block `index`; the block lies in the range it counts."""
        if index >= len(self.table.items):
            self._grow(index)
            found = self.block(index)
            if found is not None:
                return found
        # All clusters of the range are free, since nothing counts them. Behind
        # the end of the file the cluster is blank besides.
        first = index * self.per_block
        end = -(-self.storage.size >> self.header.cluster_bits)
        cluster = min(max(first, end), first + self.per_block - 1)
        block = self._new_block(index, cluster)
        block.items[cluster - first] = 1
        return block

    def _grow(self, index: int) -> None:
        """Move the refcount table to a larger place, so that it holds the entry `index`."""
        size = self.header.cluster_size
        wanted = max(index + 1, len(self.table.items) * 3 // 2)
        # The new table and the blocks that count it lie where nothing is counted yet.
        first_block = max(index, len(self.table.items))
        while True:
            clusters = -(-wanted * 8 // size)
            blocks = 1
            while blocks * self.per_block < clusters + blocks:
                blocks += 1
            if clusters * size // 8 >= first_block + blocks:
                break
            wanted = first_block + blocks
        if clusters * size > MAX_REFTABLE_BYTES:
            raise DiskError(
                f"{self.storage.name} cannot grow: its refcount table is at its largest",
                hint="convert it to larger clusters",
                path=self.storage.name,
            )
        start = first_block * self.per_block
        items = self.table.items[:]
        items.extend(array("Q", bytes(clusters * size - len(items) * 8)))
        if self._old_place is None:
            self._old_place = (
                self.header.reftable_offset >> self.header.cluster_bits,
                self.header.reftable_clusters,
            )
        else:
            # The table in between was never written: its clusters are free again.
            place = self.table.offset >> self.header.cluster_bits
            for cluster in range(place, place + len(self.table.items) * 8 // size):
                self.guard.discard(cluster)
                self.add(cluster, -1)
        self.table = Table(self.storage, start << self.header.cluster_bits, items, big_endian=True)
        self.table.mark(0, len(items))
        for number in range(blocks):
            self._new_block(first_block + number, start + clusters + number)
        self.guard.update(range(start, start + clusters))
        for cluster in range(start, start + clusters + blocks):
            block = self._blocks[cluster // self.per_block]
            block.items[cluster % self.per_block] = 1

    # ---- writing ----------------------------------------------------------

    @property
    def dirty(self) -> bool:
        return bool(self._dirty)

    def write_blocks(self) -> None:
        """Write the changed blocks. Nothing refers to new ones yet."""
        for index in sorted(self._dirty):
            self._blocks[index].write_back()
        self._dirty.clear()

    @property
    def table_dirty(self) -> bool:
        return self.table.dirty

    def write_table(self, flush: Callable[[], None]) -> None:
        """Let the table refer to the new blocks, which are durable; moves it when it has grown."""
        self.table.write_back()
        if self._old_place is None:
            flush()
            return
        flush()
        header = self.header
        header.reftable_offset = self.table.offset
        header.reftable_clusters = len(self.table.items) * 8 >> header.cluster_bits
        header.write(self.storage)
        flush()
        first, count = self._old_place
        self._old_place = None
        for cluster in range(first, first + count):
            self.guard.discard(cluster)
            self.add(cluster, -1)
