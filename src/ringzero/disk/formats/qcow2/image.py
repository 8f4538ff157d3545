"""The clusters of an open qcow2 image: the tables that map them, and the order of writes.

What is built on it (snapshots, bitmaps, compression, checking) has rooms of its own, which
are handed the image.

What a flush does when tables have changed, each step durable before the next:
1. data, refcount blocks, new L2 tables: nothing durable refers to them yet;
2. the refcount table, when there are new blocks;
3. changed L2 tables and the L1 table;
4. in memory, the refcounts of what is no longer referred to go down; that
   reaches the image with the next flush, so that a crash only leaks.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ringzero.disk.batch import Checked
from ringzero.disk.contract import (
    Kind,
    Run,
    Surroundings,
)
from ringzero.disk.filenames import parse_whole_name
from ringzero.disk.formats.qcow2.compressed import Unpacker, clusters_of
from ringzero.disk.formats.qcow2.header import (
    EXTENDED_L2,
    EXTERNAL_DATA,
    MAX_L1_BYTES,
    RAW_EXTERNAL,
    Header,
)
from ringzero.disk.formats.qcow2.mapping import (
    ALL_ALLOCATED,
    ALL_ZERO,
    COMPRESSED,
    COPIED,
    OFFSET,
    ZERO,
    Mapping,
)
from ringzero.disk.formats.qcow2.refcounts import REFTABLE_OFFSET, Refcounts
from ringzero.disk.mapped import MappedDisk
from ringzero.disk.storage import Storage
from ringzero.disk.tables import ranges
from ringzero.disk.vectors import Views, cut, fill, total
from ringzero.errors import DiskFormatError, DiskUnsupportedError


class Qcow2Image(MappedDisk):
    """The mapping of an open image, its host clusters and their counts."""

    can_have_backing = True

    def __init__(self, storage: Storage, header: Header, around: Surroundings) -> None:
        super().__init__(storage)
        self.header = header
        self.path = around.path
        self.read_only = around.read_only
        self.backing_name = header.backing_name
        self.backing_format = header.backing_format
        self.data = storage
        if header.incompatible & EXTERNAL_DATA:
            if not header.data_file:
                raise DiskFormatError(f"{storage.name} does not say where its data file is")
            self.data = around.open_storage(parse_whole_name(header.data_file))
        self.extends_at_flush = self.data is storage and not storage.is_device
        # Subclusters are entered one by one, and a data file has a place for each cluster.
        self.grants_rows = self.data is storage and not header.incompatible & EXTENDED_L2
        try:
            self.refcounts = Refcounts(storage, header)
            self.map = Mapping(storage, self.data, header, self.refcounts, self._forget)
            if header.backing_name:
                self.backing = around.open_backing(header.backing_name, header.backing_format)
        except BaseException:
            if self.data is not storage:
                self.data.close()
            raise
        self._unpacker = Unpacker(storage, header.compression, header.cluster_bits)
        self._flushing = threading.Lock()
        # Entries that no table in memory holds any more: since the last
        # writing of the tables, and before it.
        self._forgotten: list[int] = []
        self._settling: list[int] = []

    # ---- what is built on it ----------------------------------------------

    @abstractmethod
    def snapshot_tables(self) -> list[tuple[int, int]]:
        """Return the (offset, length) of the snapshots' tables."""

    @abstractmethod
    def touch(self, offset: int, length: int) -> None:
        """Hear that a guest range is about to change. Any thread."""

    @abstractmethod
    def finish(self) -> None:
        """Do what comes before the tables are written for the last time."""

    # ---- what it is -------------------------------------------------------

    @property
    def size(self) -> int:
        return self.header.size

    @property
    def cluster_size(self) -> int:
        return self.map.cluster_size

    def watch(self) -> None:
        """Find the clusters that hold metadata; nothing is written over them from now on.

        Those that QEMU watches too ("overlap-check=cached"): both headers' tables, the
        refcounts, the active L1 and L2 tables, and the snapshots' table and L1 tables.
        """
        header, bits = self.header, self.header.cluster_bits
        tables = self.snapshot_tables()
        tables += [(0, 1), (header.l1_offset, 8 * header.l1_size)]
        tables.append((header.reftable_offset, header.reftable_clusters << bits))
        guard = {
            (entry & mask) >> bits
            for items, mask in (
                (self.map.l1.items, OFFSET),
                (self.refcounts.table.items, REFTABLE_OFFSET),
            )
            for entry in items
            if entry & mask
        }
        for offset, length in tables:
            if length:
                guard.update(range(offset >> bits, ((offset + length - 1) >> bits) + 1))
        self.refcounts.guard = guard

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Keep everybody out, with all tables written and nothing left to be released."""
        with self._flushing, self._gate.alone(), self._alloc:
            self._write_back()
            self._flush_storages()
            settled, self._settling = self._settling, []
            self._release(settled)
            self._write_back()
            self._flush_storages()
            # Tables come and go while the image is worked on as a whole.
            watched, self.refcounts.guard = bool(self.refcounts.guard), set()
            try:
                yield
            finally:
                if watched:
                    self.watch()

    def _empty(self, first: int) -> None:
        """Forget all L2 tables from the L1 entry `first` on, and what they point at."""
        for number in range(first, self.header.l1_size):
            table = self.map.table(number)
            if table is None:
                continue
            step = self.map.words
            for entry in table.items[::step]:
                if entry:
                    self._forget(entry)
            offset = self.map.l1.items[number] & OFFSET
            self.refcounts.guard.discard(offset >> self.header.cluster_bits)
            self._forget(offset)
            self.map.drop_table(number)

    # ---- mapping ----------------------------------------------------------

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        return self.map.runs(offset, length)

    def _spot(self, offset: int, length: int, writing: bool) -> int | None:
        return self.map.spot(offset, length, writing)

    def _decompress(self, run: Run, offset: int, views: Views) -> None:
        assert run.host is not None
        data = self._unpacker.get(run.host)
        start = offset & (self.cluster_size - 1)
        fill(views, memoryview(data)[start : start + run.length])

    def _data_storage(self) -> Storage:
        return self.data

    def _grant_is_zero(self, host: int, length: int) -> bool:
        return host >= self.data.size

    def _clip(self, end: int) -> int:
        return min(end, self.size) if self.map.external else end

    def make_room(self) -> None:
        """Write tables when too many have changed. Called before anything is granted."""
        if self.map.crowded:
            self._write_back()

    def _grant(self, index: int, count: int) -> tuple[int, int]:
        self.make_room()
        if self.map.external:
            # In a data file, every cluster lies where the guest has it.
            return index * self.cluster_size, count
        first, found = self.refcounts.allocate(count)
        return first << self.header.cluster_bits, found

    def _link(self, index: int, count: int, host: int) -> None:
        if count == 1:
            self.link_entry(index, host | COPIED, ALL_ALLOCATED)
            return
        size = self.cluster_size
        per_table = 1 << self.map.l2_bits
        words = self.map.words
        while count:
            number, place = divmod(index, per_table)
            part = min(count, per_table - place)
            table = self.map.table_to_change(number)
            start, stop = place * words, (place + part) * words
            old = table.items[start:stop:words]
            new = array("Q", range(host | COPIED, (host | COPIED) + part * size, size))
            if words == 2:
                mixed = array("Q", [ALL_ALLOCATED]) * (2 * part)
                mixed[::2] = new
                new = mixed
            table.fill(start, new)
            for entry in old:
                if entry:
                    self._forget(entry)
            index, count, host = index + part, count - part, host + part * size

    def link_entry(self, index: int, entry: int, bitmap: int) -> None:
        """Enter one L2 entry as it is, with its bitmap where entries are extended."""
        number, place = divmod(index, 1 << self.map.l2_bits)
        table = self.map.table_to_change(number)
        place *= self.map.words
        old = table.items[place]
        table.set(place, entry)
        if self.map.words == 2:
            table.set(place + 1, bitmap)
        if old:
            self._forget(old)

    def _unlink(self, index: int, count: int, kind: Kind) -> None:
        hides = self.backing is not None or self.backing_name is not None
        if hides and self.header.version < 3:
            raise NotImplementedError
        per_table = 1 << self.map.l2_bits
        words = self.map.words
        while count:
            number, place = divmod(index, per_table)
            part = min(count, per_table - place)
            table = self.map.table(number)
            if table is not None or hides:
                start, stop = place * words, (place + part) * words
                if table is None or hides or any(table.items[start:stop]):
                    self.make_room()
                    table = self.map.table_to_change(number)
                    old = table.items[start:stop:words]
                    table.fill(start, self._blank_entries(part, hides))
                    for entry in old:
                        if entry:
                            self._forget(entry)
            if self.map.external:
                # A raw data file must read as zeroes by itself.
                start = index * self.cluster_size
                length = min(part * self.cluster_size, self.size - start)
                self.data.write_zeroes(start, length)
            index, count = index + part, count - part

    def _blank_entries(self, count: int, hides: bool) -> array[int]:
        """Return L2 entries that read as zeroes, over a backing file when `hides`."""
        if self.map.words == 2:
            return array("Q", [0, ALL_ZERO if hides else 0]) * count
        return array("Q", [ZERO if hides else 0]) * count

    # ---- giving space back ------------------------------------------------

    def _forget(self, entry: int) -> None:
        """Note an L2 entry (or the offset of an L2 table) that no table holds any more."""
        self._forgotten.append(entry)

    def clusters_of(self, entry: int) -> range:
        """Return the numbers of the host clusters that an L2 entry names."""
        if entry & COMPRESSED:
            return clusters_of(entry, self.header.cluster_bits)
        cluster = (entry & OFFSET) >> self.header.cluster_bits
        return range(cluster, cluster + bool(cluster))

    def _release(self, settled: list[int]) -> None:
        """Count down what no durable table refers to; give the space back to the host."""
        free: list[int] = []
        for entry in settled:
            if self.map.external and not entry & COMPRESSED and entry & COPIED:
                continue
            for cluster in self.clusters_of(entry):
                if cluster in self.refcounts.guard:
                    # Another table names it as its own; better lost than given out.
                    continue
                if self.refcounts.get(cluster) and self.refcounts.add(cluster, -1) == 0:
                    free.append(cluster)
        self._unpacker.forget()
        bits = self.header.cluster_bits
        for first, count in ranges(sorted(free)):
            self.storage.discard(first << bits, count << bits)

    # ---- writing ----------------------------------------------------------

    def _prepare(self, requests: Sequence[Checked]) -> None:
        if self.header.bitmaps is not None:
            for offset, views in requests:
                self.touch(offset, total(views))

    def _is_nowhere(self, index: int, count: int) -> bool:
        number, place = divmod(index, 1 << self.map.l2_bits)
        table = self.map.table(number)
        if table is None:
            return place + count <= 1 << self.map.l2_bits
        if count == 1:
            return not table.items[place]
        return place + count <= len(table.items) and not any(table.items[place : place + count])

    def _write_new(self, offset: int, views: Views) -> None:
        if self.map.words == 1:
            super()._write_new(offset, views)
            return
        done, length = 0, total(views)
        while done < length:
            at = offset + done
            piece = min(length - done, self.cluster_size - at % self.cluster_size)
            self._write_subclusters(at, cut(views, done, piece))
            done += piece

    def _write_subclusters(self, offset: int, views: Views) -> None:
        """Write bytes of one cluster with extended entries; copies only subclusters."""
        index = offset // self.cluster_size
        number, place = divmod(index, 1 << self.map.l2_bits)
        table = self.map.table(number)
        entry = table.items[2 * place] if table is not None else 0
        bitmap = table.items[2 * place + 1] if table is not None else 0
        if bitmap & ALL_ALLOCATED or entry & COMPRESSED:
            there = self.map.external or (entry & OFFSET) < self.data.size
            own = there and entry & COPIED and self.map.l1.items[number] & COPIED
            if entry & COMPRESSED or not own:
                # Other bytes of the cluster must move along.
                super()._write_new(offset, views)
                return
        host = entry & OFFSET
        fresh = not (entry & COPIED and (host or self.map.external)) or not (
            self.map.l1.items[number] & COPIED
        )
        if fresh:
            host, _ = self._grant(index, 1)
        sub = self.cluster_size // 32
        start = offset // sub * sub
        length = total(views)
        end = -(-(offset + length) // sub) * sub
        head = self._old_bytes(start, offset - start)
        tail = self._old_bytes(offset + length, end - offset - length)
        inside = start % self.cluster_size
        self.data.write(host + inside, [*head, *views, *tail])
        if self.data.size < host + self.cluster_size and not self.map.external:
            self.data.truncate(host + self.cluster_size)
        table = self.map.table_to_change(number)
        mask = (1 << (end - start) // sub) - 1 << inside // sub
        table.set(2 * place, host | COPIED)
        table.set(2 * place + 1, (bitmap | mask) & ~(mask << 32))
        if fresh and entry & OFFSET:
            self._forget(entry)

    def _old_bytes(self, offset: int, length: int) -> Views:
        return (self._old(offset, length, blank=False) or []) if length else []

    def _clear(self, offset: int, length: int, kind: Kind) -> None:
        self.touch(offset, length)
        super()._clear(offset, length, kind)

    def _tables_dirty(self) -> bool:
        return (
            self.map.dirty
            or self.refcounts.dirty
            or self.refcounts.table_dirty
            or bool(self._forgotten)
        )

    def _flush(self) -> None:
        with self._flushing:
            settled: list[int] = []
            if self._tables_dirty() or self._settling:
                with self._alloc:
                    self._write_back()
                    settled, self._settling = self._settling, []
            self._flush_storages()
            if settled:
                with self._gate.alone(), self._alloc:
                    self._release(settled)

    def _write_back(self) -> None:
        self._settling += self._forgotten
        self._forgotten = []
        # QEMU reads whole clusters; the last one must be there in full.
        if self.storage.size % self.cluster_size and not self.storage.is_device:
            self.storage.truncate(-(-self.storage.size // self.cluster_size) * self.cluster_size)
        self.refcounts.write_blocks()
        self.map.write_new()
        self._flush_storages()
        if self.refcounts.table_dirty:
            self.refcounts.write_table(self.storage.flush)
        self._write_tables()

    def _write_tables(self) -> None:
        self.map.write_rest()

    def _flush_storages(self) -> None:
        if self.data is not self.storage:
            self.data.flush()
        self.storage.flush()

    def _resize(self, size: int) -> None:
        header = self.header
        if header.bitmaps is not None:
            raise DiskUnsupportedError(
                "an image with bitmaps cannot be resized", hint="remove the bitmaps first"
            )
        old = header.size
        needed = header.l1_needed(size)
        if needed * 8 > MAX_L1_BYTES:
            raise DiskUnsupportedError(
                f"{size} bytes are too many for clusters of {self.cluster_size} bytes",
                hint="convert the image to larger clusters",
            )
        self._flush()
        with self._gate.alone(), self._alloc:
            if size < old:
                self._cut_off(size)
            elif needed > header.l1_size:
                self._grow_l1(needed)
            header.size = size
            header.write(self.storage)
            self.storage.flush()
            if self.map.external and header.autoclear & RAW_EXTERNAL:
                self.data.truncate(size)
        if size > old:
            self._zero_new(old, size)
        self._flush()

    def _cut_off(self, size: int) -> None:
        """Forget all clusters behind the new end."""
        first = -(-size // self.cluster_size)
        per_table = 1 << self.map.l2_bits
        edge = -(-first // per_table)
        self._empty(edge)
        table = self.map.table(first // per_table) if first % per_table else None
        if table is not None:
            table = self.map.table_to_change(first // per_table)
            start = first % per_table * self.map.words
            for entry in table.items[start :: self.map.words]:
                if entry:
                    self._forget(entry)
            table.fill(start, array("Q", bytes(8 * (len(table.items) - start))))

    def _grow_l1(self, needed: int) -> None:
        items = self.map.l1.items[:]
        items.extend(array("Q", bytes(8 * (needed - len(items)))))
        self.switch_l1(items)

    def switch_l1(self, items: array[int]) -> None:
        """Write `items` as the active L1 table at a new place and let the header refer to it.

        All tables have been written. Called with the gate closed, under `_alloc`.
        """
        header = self.header
        size = self.cluster_size
        count = max(1, -(-len(items) * 8 // size))
        first = self.refcounts.allocate_row(count)
        offset = first << header.cluster_bits
        swapped = items[:]
        swapped.byteswap()
        self.storage.write(offset, [swapped.tobytes().ljust(count * size, b"\0")])
        old_first, old_size = header.l1_offset >> header.cluster_bits, header.l1_size
        self._write_back()
        self._flush_storages()
        header.l1_offset, header.l1_size = offset, len(items)
        header.write(self.storage)
        self.storage.flush()
        self.map.replace_l1(items, offset)
        guard = self.refcounts.guard
        if guard:
            guard.update(range(first, first + count))
        for cluster in range(old_first, old_first + max(1, -(-old_size * 8 // size))):
            guard.discard(cluster)
            self.refcounts.add(cluster, -1)

    def _close(self) -> None:
        try:
            if not self.read_only:
                self.finish()
                if self._forgotten or self._settling:
                    self._flush()
                if self._tables_dirty():
                    with self._alloc:
                        self._write_back()
        finally:
            self.storage.close()
            if self.data is not self.storage:
                self.data.close()
