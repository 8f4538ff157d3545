"""What all formats share that map the disk in clusters: reading by runs, copy-on-write, order.

A format says where bytes are (`_runs`), gives host space for new clusters
(`_grant`), and enters them in its tables (`_link`). Everything else is here:
requests are cut into runs and each run is one vectored host call; a write to
a cluster that is not yet the layer's own is completed with the old bytes
around it.

Order on disk. `_link` changes tables in memory only. `flush` first makes the
data durable and then calls `_write_tables`, so that a table never points at
bytes that are not there. Space that a table no longer points at goes to
`_forget` and is given out again only when that table is durable and no
request that began before is still running (`_reclaim`).

Locks, in the order in which they are taken: the gate (requests pass, those
that take space away close it), then `_alloc` (tables and the allocator).
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ringzero.disk.batch import Checked
from ringzero.disk.contract import Disk, Kind, Run
from ringzero.disk.storage import Storage
from ringzero.disk.vectors import (
    Buffers,
    Views,
    as_views,
    cut,
    fill_zeroes,
    total,
    zero_views,
)

# What `_spot` says of a small range that is not plain data.
SPOT_ZERO = -1  # it reads as zeroes
SPOT_ABSENT = -2  # this layer says nothing


class Gate:
    """Many may be inside at a time, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        # One for each who is inside. Appending and popping need no lock.
        self._inside: list[None] = []
        self._closed = False

    def enter(self) -> None:
        self._inside.append(None)
        if self._closed:
            self._enter_later()

    def _enter_later(self) -> None:
        self.leave()
        with self._changed:
            while self._closed:
                self._changed.wait()
            # Whoever closes it next holds the lock, and finds us inside.
            self._inside.append(None)

    def leave(self) -> None:
        self._inside.pop()
        if self._closed:
            with self._changed:
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody is inside, and keep everybody out meanwhile."""
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._closed = True
            # Who has come in before seeing this leaves, and says so.
            while self._inside:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()


class _Row:
    """Whole clusters that lie behind one another in the storage, to be written at once."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._host = self._end = 0
        self._views: Views = []

    def add(self, host: int, views: Views) -> None:
        if host != self._end:
            self.write()
            self._host = host
        self._views += views
        self._end = host + total(views)

    def write(self) -> None:
        if self._views:
            self._storage.write(self._host, self._views)
            self._views = []


class MappedDisk(Disk):
    """A layer that maps the disk in clusters of `cluster_size` bytes, a power of two.

    The constructor of a format calls `super().__init__(storage)`.
    """

    # Whether `_write_tables` makes the file cover the last cluster in full, so
    # that zeroes at its end need not be written with each request.
    extends_at_flush = False
    # Whether `_grant` minds only how many clusters are wanted, and not which, so that clusters
    # far apart on the disk may be given one row of space.
    grants_rows = False

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._gate = Gate()
        self._alloc = threading.RLock()

    # ---- what a format implements -----------------------------------------

    @property
    @abstractmethod
    def cluster_size(self) -> int: ...

    @abstractmethod
    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        """Yield what this layer says about a range, clusters that lie together as one run.

        Called without a lock, next to `_link` in another thread: read each
        table entry once.
        """

    @abstractmethod
    def _grant(self, index: int, count: int) -> tuple[int, int]:
        """Return (host offset, n): host space for n clusters in a row, 1 <= n <= count.

        The clusters from `index` are ABSENT, ZERO, COMPRESSED or not writable now. The space holds
        nothing that a table points at, durable or not. Called under `_alloc`.
        """

    @abstractmethod
    def _link(self, index: int, count: int, host: int) -> None:
        """Enter `count` clusters from `index`, whose bytes are written at `host`, in the tables.

        What they pointed at before goes to the format's own list of space to
        be forgotten. In memory only. Called under `_alloc`.
        """

    @abstractmethod
    def _unlink(self, index: int, count: int, kind: Kind) -> None:
        """Make `count` units of `unlink_size` ZERO or ABSENT.

        Called with the gate closed, under `_alloc`. A format that cannot say ZERO
        over a backing file raises NotImplementedError; zeroes are then written.
        """

    def _spot(self, offset: int, length: int, writing: bool) -> int | None:
        """Return where a small range lies in `_data_storage`, when that is quickly told.

        It must be plain data in one row, and for `writing` be writable there.
        For reading also SPOT_ZERO or SPOT_ABSENT, when all of the range is so.
        None sends the request the long way, by `_runs`.
        """
        return None

    @property
    def unlink_size(self) -> int:
        """The unit in which `_unlink` works, in bytes: a cluster, or some of them."""
        return self.cluster_size

    def _tables_dirty(self) -> bool:
        """Whether `_write_tables` has anything to do."""
        return True

    @abstractmethod
    def _write_tables(self) -> None:
        """Write all changed tables to the storage. All data they point at is durable already.

        Called under `_alloc`. The caller makes them durable afterwards; a
        format whose tables have an order among themselves flushes in between.
        """

    def _reclaim(self) -> None:
        """Give out again what was forgotten before the last flush. Called with the gate closed."""

    def _has_forgotten(self) -> bool:
        """Whether `_reclaim` has anything to do."""
        return False

    def _decompress(self, run: Run, offset: int, views: Views) -> None:
        """Fill `views` with the bytes of a COMPRESSED run that holds the guest offset."""
        raise NotImplementedError

    def _grant_is_zero(self, host: int, length: int) -> bool:
        """Whether granted space is known to read as zeroes (past the file's end, say)."""
        return host >= self.storage.size

    def _clip(self, end: int) -> int:
        """Return where the bytes of a cluster that ends at guest offset `end` stop."""
        return end

    def _data_storage(self) -> Storage:
        """Where `_grant` gives space."""
        return self.storage

    # ---- reading ----------------------------------------------------------

    def _read(self, offset: int, views: Views) -> None:
        length = total(views)
        self._gate.enter()
        try:
            host = self._spot(offset, length, False)
            if host is not None:
                self._read_spot(host, offset, views)
                return
            done = 0
            for run in self._runs(offset, length):
                part = views if run.length == length else cut(views, done, run.length)
                self._read_run(run, offset + done, part)
                done += run.length
        finally:
            self._gate.leave()

    def _read_spot(self, host: int, offset: int, views: Views) -> None:
        """Fill `views` as `_spot` has said."""
        if host >= 0:
            self._data_storage().read_into(host, views)
        elif host == SPOT_ZERO or self.backing is None:
            fill_zeroes(views)
        else:
            self._read_backing(offset, views)
            if self.copy_on_read:
                self._keep(offset, views)

    def _read_ready(self, requests: Sequence[Checked]) -> list[Checked]:
        waiting: list[Checked] = []
        spot, read_cached = self._spot, self._data_storage().read_cached
        self._gate.enter()
        try:
            for request in requests:
                offset, views = request
                host = spot(offset, total(views), False)
                if host is None:
                    if not self._read_cached(offset, views):
                        waiting.append(request)
                elif host >= 0:
                    if not read_cached(host, views):
                        waiting.append(request)
                elif host == SPOT_ZERO or self.backing is None:
                    fill_zeroes(views)
                else:
                    waiting.append(request)
        finally:
            self._gate.leave()
        return waiting

    def _read_cached(self, offset: int, views: Views) -> bool:
        """Read a range, if this layer has all of it and the host has that in memory."""
        length, done = total(views), 0
        for run in self._runs(offset, length):
            part = views if run.length == length else cut(views, done, run.length)
            if run.kind is Kind.DATA:
                if run.storage is None or run.host is None:
                    return False
                if not run.storage.read_cached(run.host, part):
                    return False
            elif run.kind is Kind.ZERO or (run.kind is Kind.ABSENT and self.backing is None):
                fill_zeroes(part)
            else:
                return False
            done += run.length
        return True

    def _announce(self, offset: int, length: int) -> None:
        self._gate.enter()
        try:
            for run in self._runs(offset, length):
                if run.kind is Kind.DATA and run.storage is not None and run.host is not None:
                    run.storage.announce(run.host, run.length)
        finally:
            self._gate.leave()

    def _read_run(self, run: Run, offset: int, views: Views) -> None:
        if run.kind is Kind.DATA:
            assert run.storage is not None
            assert run.host is not None
            run.storage.read_into(run.host, views)
        elif run.kind is Kind.ZERO:
            fill_zeroes(views)
        elif run.kind is Kind.COMPRESSED:
            self._decompress(run, offset, views)
        else:
            self._read_backing(offset, views)
            if self.copy_on_read and self.backing is not None:
                self._keep(offset, views)

    def _keep(self, offset: int, views: Views) -> None:
        """Write what was read from the backing file, where nobody has written since."""
        with self._alloc:
            done = 0
            for run in list(self._runs(offset, total(views))):
                if run.kind is Kind.ABSENT:
                    self._write_new(offset + done, cut(views, done, run.length))
                done += run.length

    def fill(self, offset: int, buffers: Buffers) -> None:
        """Write `buffers` where this layer holds nothing; what it holds stays, whoever wrote it.

        Raises what `write` raises.
        """
        views = as_views(buffers)
        self._check_write(offset, total(views))
        if views:
            self._prepare([(offset, views)])
            self._gate.enter()
            try:
                self._keep(offset, views)
            finally:
                self._gate.leave()

    # ---- writing ----------------------------------------------------------

    def _write(self, offset: int, views: Views) -> None:
        self._prepare([(offset, views)])
        self._write_prepared(offset, views)

    def _prepare(self, requests: Sequence[Checked]) -> None:
        """Hear which ranges are about to be written."""

    def _write_prepared(self, offset: int, views: Views) -> None:
        length = total(views)
        self._gate.enter()
        try:
            host = self._spot(offset, length, True)
            if host is not None:
                self._data_storage().write(host, views)
                return
            done = 0
            if offset % self.cluster_size + length <= self.cluster_size:
                # A small request that has no spot most likely has no cluster yet.
                done = self._write_some_new(offset, views, 0, length)
            while done < length:
                for run in self._runs(offset + done, length - done):
                    part = views if run.length == length else cut(views, done, run.length)
                    if not run.writable:
                        break
                    assert run.storage is not None
                    assert run.host is not None
                    run.storage.write(run.host, part)
                    done += run.length
                else:
                    break
                done += self._write_some_new(offset + done, views, done, length)
        finally:
            self._gate.leave()

    def _write_batch(self, requests: Sequence[Checked]) -> None:
        self._prepare(requests)
        if self.grants_rows and self.backing is None and requests:
            self._gate.enter()
            try:
                with self._alloc:
                    requests = self._write_fresh(requests)
            finally:
                self._gate.leave()
        for offset, views in requests:
            self._write_prepared(offset, views)

    def _write_fresh(self, requests: Sequence[Checked]) -> list[Checked]:
        """Do the writes whose clusters are nowhere yet, into rows of space; return the others.

        There is no backing file. Called under `_alloc`.
        """
        size = self.cluster_size
        fresh: deque[tuple[int, int, int, Views]] = deque()
        others: list[Checked] = []
        wanted = reached = 0
        for offset, views in requests:
            index, before = divmod(offset, size)
            stop = -(-(offset + total(views)) // size)
            if index >= reached and self._is_nowhere(index, stop - index):
                fresh.append((index, stop - index, before, views))
                wanted += stop - index
                reached = stop
            else:
                others.append((offset, views))
        storage = self._data_storage()
        row = _Row(storage)
        host = left = 0
        linked: list[tuple[int, int, int]] = []
        while fresh:
            index, count, before, views = fresh.popleft()
            if not left:
                host, left = self._grant(index, wanted)
            if count > left:
                # The row ends inside the request.
                length = left * size - before
                rest = cut(views, length, total(views) - length)
                fresh.appendleft((index + left, count - left, 0, rest))
                views, count = cut(views, 0, length), left
            if not before and not total(views) % size:
                row.add(host, views)
            else:
                row.write()
                if self.extends_at_flush and self._grant_is_zero(host, count * size):
                    storage.write(host + before, views)
                else:
                    self._write_clusters(index, count, host, before, views)
            linked.append((index, count, host))
            host, left, wanted = host + count * size, left - count, wanted - count
        row.write()
        for link in linked:
            self._link(*link)
        return others

    def _is_nowhere(self, index: int, count: int) -> bool:
        """Whether this layer says nothing about `count` clusters."""
        start = index * self.cluster_size
        length = min(count * self.cluster_size, self.size - start)
        run = next(iter(self._runs(start, length)))
        return run.kind is Kind.ABSENT and run.length == length

    def _write_some_new(self, offset: int, views: Views, done: int, length: int) -> int:
        """Write what cannot be written in place at the head of the rest; return how many bytes."""
        with self._alloc:
            count = 0
            for run in self._runs(offset, length - done):
                if run.writable:
                    break
                count += run.length
            if count:
                self._write_new(offset, cut(views, done, count))
            return count

    def _write_new(self, offset: int, views: Views) -> None:
        """Write bytes, none of which can be written in place. Called under `_alloc`."""
        size = self.cluster_size
        length = total(views)
        done = 0
        while done < length:
            at = offset + done
            index, before = divmod(at, size)
            last = (offset + length - 1) // size
            host, count = self._grant(index, last - index + 1)
            piece = min(length - done, count * size - before)
            self._write_clusters(index, count, host, before, cut(views, done, piece))
            self._link(index, count, host)
            done += piece

    def _write_clusters(self, index: int, count: int, host: int, before: int, views: Views) -> None:
        """Write `views` into granted clusters from `before` on, with the old bytes around them."""
        size = self.cluster_size
        start = index * size
        length = self._clip(start + count * size) - start
        after = length - before - total(views)
        storage = self._data_storage()
        if not before and not after:
            storage.write(host, views)
            return
        blank = self._grant_is_zero(host, count * size)
        if blank and self.extends_at_flush and self._known_zero(start, length):
            storage.write(host + before, views)
            return
        head = self._old(start, before, blank) if before else []
        tail = self._old(start + length - after, after, blank) if after else []
        if head is not None and tail is not None:
            storage.write(host, [*head, *views, *tail])
        else:
            storage.write(host + (before if head is None else 0), [*(head or []), *views])
            if tail:
                storage.write(host + length - after, tail)
        if tail is None and storage.size < host + length:
            storage.truncate(host + length)

    def _old(self, offset: int, length: int, blank: bool) -> Views | None:
        """Return the bytes now in a range; None when they are zero and the new place is blank."""
        length_there = max(0, min(length, self.size - offset))
        if self._known_zero(offset, length_there):
            return None if blank else zero_views(length)
        old = memoryview(bytearray(length))
        done = 0
        for run in self._runs(offset, length_there):
            part = [old[done : done + run.length]]
            if run.kind is Kind.ABSENT:
                self._read_backing(offset + done, part)
            else:
                self._read_run(run, offset + done, part)
            done += run.length
        return [old]

    def _known_zero(self, offset: int, length: int) -> bool:
        length = min(length, self.size - offset)
        end = self.backing.size if self.backing is not None else 0
        for run in self._runs(offset, length) if length > 0 else ():
            if run.kind is not Kind.ZERO and (run.kind is not Kind.ABSENT or offset < end):
                return False
            offset += run.length
        return True

    # ---- zeroing ----------------------------------------------------------

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self._clear(offset, length, Kind.ZERO)

    def _discard(self, offset: int, length: int) -> None:
        size = self.unlink_size
        first, last = -(-offset // size), (offset + length) // size
        if offset + length == self.size:
            last = -(-self.size // size)
        if first < last:
            self._clear(first * size, min(last * size, self.size) - first * size, Kind.ZERO)

    def _clear(self, offset: int, length: int, kind: Kind) -> None:
        """Make a range read as zeroes: whole clusters by the tables, their edges by writing."""
        size = self.unlink_size
        end = offset + length
        first, last = -(-offset // size), end // size
        if end == self.size:
            last = -(-end // size)
        if first >= last:
            self._write_over(offset, length)
            return
        if offset < first * size:
            self._write_over(offset, first * size - offset)
        try:
            with self._gate.alone(), self._alloc:
                self._unlink(first, last - first, kind)
        except NotImplementedError:
            self._write_over(first * size, min(last * size, end) - first * size)
        if last * size < end:
            self._write_over(last * size, end - last * size)

    def _write_over(self, offset: int, length: int) -> None:
        """Write zeroes where the range does not read as zeroes already."""
        for extent in list(self.block_status(offset, length)):
            if not extent.reads_zero:
                for start in range(0, extent.length, 1 << 24):
                    count = min(1 << 24, extent.length - start)
                    self._write(extent.offset + start, zero_views(count))

    def _zero_new(self, old: int, new: int) -> None:
        """Make the bytes zero that growing from `old` to `new` has brought to light.

        Called after the size has changed: the last cluster may hold what was
        cut off before, and a longer backing file would show through.
        """
        edge = min(new, -(-old // self.cluster_size) * self.cluster_size)
        if old < edge:
            self._write_over(old, edge - old)
        hidden = min(new, self.backing.size) if self.backing is not None else 0
        if edge < hidden:
            self._clear(edge, hidden - edge, Kind.ZERO)

    # ---- flushing ---------------------------------------------------------

    def _flush(self) -> None:
        if self._tables_dirty():
            with self._alloc:
                self._write_back()
        self._flush_storages()
        if self._has_forgotten():
            with self._gate.alone(), self._alloc:
                self._reclaim()

    def _write_back(self) -> None:
        """Bring the tables to the storage in order. Called under `_alloc`."""
        self._flush_storages()
        self._write_tables()

    def _flush_storages(self) -> None:
        """Make what was written to the storages durable."""
        self.storage.flush()

    def _close(self) -> None:
        try:
            if not self.read_only:
                with self._gate.alone(), self._alloc:
                    self._give_back()
        finally:
            self.storage.close()

    def _give_back(self) -> None:
        """Write what is left to write, and let go of space that nothing names any more."""
        if self._tables_dirty():
            self._write_back()
        if self._has_forgotten():
            # Its old owners must be gone for good before it is used for anything else.
            self._flush_storages()
            self._reclaim()
