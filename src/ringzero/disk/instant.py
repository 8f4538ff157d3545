"""The content of a disk at an instant, while the disk goes on being written to.

`LiveDisk` stands between a machine and its disk. Once an instant was taken,
whatever is about to be overwritten is copied aside first (copy before write),
so the machine keeps writing to its own image, with all that flush promises,
and the instant reads as it was. Copies go to the newest instant only; an older
one looks into its own copies, then into the newer one's, then at the disk.

Processes that are made by os.fork may read an instant too (`InstantDisk.share`):
copies, and the index of them, lie in memory that they share, and what an
instant is read for elsewhere is copied into it for as long as there is a reader.

The image stays open, and locked, until the machine and the last instant have
let go of it. Copies lie in anonymous memory, as much as the machine overwrites.

Requests pass a gate, so that somebody may change what is behind them: watchers
(`Watcher`) come and go while no request is in flight, and another file takes over
(`take_over`), which block jobs do (`ringzero.disk.jobs`).
"""

from __future__ import annotations

import mmap
import os
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, Self

from ringzero.disk.contract import Disk, DiskInfo, Extent, Kind, Run, Sample, Surroundings
from ringzero.disk.mapped import Gate
from ringzero.disk.overlay import OverlayDisk
from ringzero.disk.storage import MemoryStorage, Storage
from ringzero.disk.vectors import Buffers, Views, as_views, cut, total
from ringzero.errors import ConflictError, DiskReadOnlyError, InvalidValueError
from ringzero.units import KIB

# What is copied aside at once; as the overlay's clusters, for the same reason.
CLUSTER = 64 * KIB


class _Copies:
    """Clusters that were copied aside; processes forked from this one see new ones too."""

    def __init__(self, clusters: int) -> None:
        self._storage = MemoryStorage("ringzero-instant")
        # The number of copies; then for each cluster its number, from 1, or 0.
        self._map = mmap.mmap(-1, 4 * (clusters + 1))
        self._index = memoryview(self._map).cast("I")

    @property
    def count(self) -> int:
        """How many there are."""
        return self._index[0]

    def place(self, cluster: int) -> int | None:
        """Return where the copy of a cluster is, if there is one."""
        number = self._index[cluster + 1]
        return (number - 1) * CLUSTER if number else None

    def put(self, cluster: int, data: bytes) -> None:
        """Add a copy; readers find it when it is there as a whole."""
        number = self._index[0]
        self._storage.write(number * CLUSTER, data)
        self._index[0] = self._index[cluster + 1] = number + 1

    def read_into(self, place: int, views: Views) -> None:
        """Fill `views` from a copy."""
        self._storage.read_into(place, views)

    def close(self) -> None:
        """Forget everything, in this process."""
        self._storage.close()
        self._index.release()
        self._map.close()


class Readers:
    """Other processes that read instants: those that are forked before `complete` is called."""

    def __init__(self, instants: list[InstantDisk]) -> None:
        self.instants = instants
        self._end, self._readers_end = os.pipe2(os.O_CLOEXEC)

    def complete(self) -> None:
        """Say, in the original, that no further process is forked to read."""
        os.close(self._readers_end)

    @property
    def gone(self) -> bool:
        """Whether the last of them has ended."""
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        return bool(poll.poll(0))

    def release(self) -> None:
        """Let go of the instants."""
        os.close(self._end)
        for instant in self.instants:
            instant.close()


class Watcher(Protocol):
    """Who hears of changes to a live disk, on the thread that makes them, inside the gate.

    Neither call may raise, nor use the gate.
    """

    def before(self, offset: int, length: int) -> None:
        """Hear that a range, which may not be on the disk, is about to be changed."""

    def after(self, offset: int, length: int) -> None:
        """Hear that it has been changed, or that this has failed."""


class LiveDisk:
    """A machine's disk, of which instants can be taken; owns `disk`.

    Has what a block device needs of a disk, and is as safe for threads. `on_close` are called
    before it lets go of the disk.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.read_only = disk.read_only
        self.on_close: list[Callable[[], None]] = []
        self._gate = Gate()
        self._watchers: tuple[Watcher, ...] = ()
        # What were layers before, and may still be read by instants.
        self._retired: list[Disk] = []
        self._unshared: list[object] = []
        self._newest: InstantDisk | None = None
        self._readers: list[Readers] = []
        # Guards the instants' counts too; held while something is copied aside.
        self.lock = threading.RLock()
        self._holders = 1
        self._closed = False

    @property
    def size(self) -> int:
        """The guest-visible size in bytes."""
        return self.disk.size

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Be a request in the block, which may then use `disk`; not to be nested."""
        self._gate.enter()
        try:
            yield
        finally:
            self._gate.leave()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Have no request in flight in the block; the others wait."""
        with self._gate.alone():
            yield

    def read_into(self, offset: int, buffers: Buffers) -> None:
        """Read as `Disk.read_into` does."""
        self._gate.enter()
        try:
            self.disk.read_into(offset, buffers)
        finally:
            self._gate.leave()

    def flush(self) -> None:
        """Flush as `Disk.flush` does."""
        with self.passing():
            self.disk.flush()

    def write(self, offset: int, buffers: Buffers) -> None:
        """Write as `Disk.write` does."""
        self._gate.enter()
        try:
            if self._newest is None and not self._readers and not self._watchers:
                self.disk.write(offset, buffers)
            else:
                with self._told(offset, total(as_views(buffers))):
                    self.disk.write(offset, buffers)
        finally:
            self._gate.leave()

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make a range read as zeroes."""
        with self.passing(), self._told(offset, length):
            self.disk.write_zeroes(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        """Say that a range is no longer needed."""
        with self.passing(), self._told(offset, length):
            self.disk.discard(offset, length)

    @contextmanager
    def _told(self, offset: int, length: int) -> Iterator[None]:
        """Let all hear who want to that a range is changed in the block."""
        self._save(offset, length)
        # Those that came before it began; others come when nothing is in flight.
        watchers = self._watchers
        for watcher in watchers:
            watcher.before(offset, length)
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.after(offset, length)

    def _save(self, offset: int, length: int) -> None:
        with self.lock:
            for readers in [one for one in self._readers if one.gone]:
                self._readers.remove(readers)
                readers.release()
            if self._newest is not None:
                self._newest.keep(offset, length)
            for readers in self._readers:
                for instant in readers.instants:
                    if instant is not self._newest:
                        instant.keep(offset, length)

    def exchange(self, disk: Disk) -> None:
        """Be another disk from now on, which is owned then; no request may be in flight.

        Raises InvalidValueError while copies of the machine read this one.
        """
        with self.lock:
            if self._holders > 1 or self._readers:
                raise InvalidValueError("copies of the machine still read the disk")
            if self.on_close:
                raise InvalidValueError(
                    "a block job or an export uses the disk", hint="end it first"
                )
            self.flush()
            self.disk.close()
            self.disk = disk

    def watch(self, watcher: Watcher) -> None:
        """Have `watcher` hear of all changes that begin from now on; none is in flight now.

        To be called in a block of `still`.
        """
        self._watchers += (watcher,)

    def unwatch(self, watcher: Watcher) -> None:
        """Have `watcher` hear no more; of what is in flight it may still."""
        self._watchers = tuple(one for one in self._watchers if one is not watcher)

    def take_over(self, disk: Disk) -> Disk:
        """Be another disk that reads the same from now on; return the old one, to be retired.

        To be called in a block of `still`.
        """
        old, self.disk = self.disk, disk
        return old

    def retire(self, layers: Sequence[Disk]) -> None:
        """Close what were layers of the disk, each alone, once no instant reads them any more."""
        with self.lock:
            self._retired += layers
            if self._holders <= 1:
                self._close_retired()

    def _close_retired(self) -> None:
        retired, self._retired = self._retired, []
        for layer in retired:
            # What is below it is used elsewhere, or among them.
            layer.backing = None
            layer.close()

    def keep_unshared(self, who: object) -> None:
        """Have no other process read instants until `shared_again`.

        For who writes to layers below the disk, whose tables another process has in its own
        memory. Raises ConflictError while some do.
        """
        with self.lock:
            if any(not readers.gone for readers in self._readers):
                raise ConflictError(
                    "copies of the machine read the disk", hint="end the copies first"
                )
            self._unshared.append(who)

    def require_shared(self) -> None:
        """Raise ConflictError while other processes are not to read instants."""
        if self._unshared:
            raise ConflictError(
                "a block job writes to the disk's backing files",
                hint="wait until it is over: `ringzero disk job`",
            )

    def shared_again(self, who: object) -> None:
        """Let other processes read instants."""
        with self.lock:
            self._unshared = [one for one in self._unshared if one is not who]

    def become(self, content: Disk) -> None:
        """Make the disk read as `content`, of the same size; what differs is written, and flushed.

        No request may be in flight. A failure leaves some of it done; it can be repeated.
        """
        for extent in content.block_status():
            for mine in list(self.disk.block_status(extent.offset, extent.length)):
                if extent.reads_zero and mine.reads_zero:
                    continue
                for at in range(mine.offset, mine.offset + mine.length, CLUSTER):
                    length = min(CLUSTER, mine.offset + mine.length - at)
                    data = bytes(length) if extent.reads_zero else content.read(at, length)
                    if self.disk.read(at, length) == data:
                        continue
                    if any(data):
                        self.write(at, data)
                    else:
                        self.write_zeroes(at, length)
        self.flush()

    def instant(self) -> InstantDisk:
        """Return the content as it is now, to be closed."""
        with self._gate.alone(), self.lock:
            newest = self._newest
            if newest is not None and newest.untouched:
                return newest.hold()
            self._newest = InstantDisk(self)
            self._holders += 1
            if newest is not None:
                newest.newer = self._newest.hold()
            return self._newest

    def forget(self, instant: InstantDisk) -> None:
        """Hear that nobody reads `instant` any more; the lock is held."""
        if self._newest is instant:
            self._newest = None
        self._release()

    def close(self) -> None:
        """Let go of the disk; it is closed with the last instant."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
        # Not under the lock: requests in flight may want it.
        for leave in list(self.on_close):
            leave()
        with self.lock:
            try:
                self.flush()
            finally:
                for readers in self._readers:
                    readers.release()
                self._readers.clear()
                self._release()

    def expect(self, readers: Readers) -> None:
        """Keep for other processes what they read."""
        with self.lock:
            self._readers.append(readers)

    def _release(self) -> None:
        self._holders -= 1
        if self._holders <= 1:
            # What is left is the machine, or nobody.
            self._close_retired()
        if self._holders == 0:
            self.disk.close()


class InstantDisk(Disk):
    """What `LiveDisk.instant` returns: read-only, counted, never changing."""

    format = "instant"

    def __init__(self, live: LiveDisk) -> None:
        self.path = live.disk.path
        self.read_only = True
        # The instant after this one: what it does not hold, is there or on the disk.
        self.newer: InstantDisk | None = None
        self._live = live
        self._copies: _Copies | None = None
        self._holders = 1

    # ---- life -------------------------------------------------------------

    def hold(self) -> InstantDisk:
        """Count one more holder, who closes it too."""
        with self._live.lock:
            self._holders += 1
        return self

    def grow(self) -> LiveDisk:
        """Return a disk with this content whose writes are its own and thrown away."""
        return LiveDisk(self.hold() if self._live.read_only else OverlayDisk(self.hold()))

    def _close(self) -> None:
        with self._live.lock:
            self._holders -= 1
            if self._holders:
                return
            if self._copies is not None:
                self._copies.close()
            if self.newer is not None:
                self.newer.close()
            self._live.forget(self)

    # ---- copies -----------------------------------------------------------

    @property
    def untouched(self) -> bool:
        """Whether nothing was written since."""
        return self._copies is None or self._copies.count == 0

    def share(self) -> Readers:
        """Let processes that are forked from now on, until `Readers.complete`, read this too.

        No request may be in flight at a fork. In such a process the instant may be read and
        `grow` called; what belongs to the original there is left alone. Raises ConflictError.
        """
        with self._live.lock:
            self._live.require_shared()
            chain: list[InstantDisk] = []
            instant: InstantDisk | None = self
            while instant is not None:
                instant._have_copies()
                chain.append(instant.hold())
                instant = instant.newer
            readers = Readers(chain)
            self._live.expect(readers)
        return readers

    def _have_copies(self) -> _Copies:
        if self._copies is None:
            self._copies = _Copies(-(-self.size // CLUSTER))
        return self._copies

    def keep(self, offset: int, length: int) -> None:
        """Copy aside what a range holds, before it is overwritten; the live disk's lock is held."""
        disk = self._live.disk
        # Ranges outside the disk are refused by the write that follows.
        end = min(offset + length, disk.size)
        for index in range(max(0, offset) // CLUSTER, -(-end // CLUSTER)):
            copies = self._have_copies()
            if copies.place(index) is None:
                start = index * CLUSTER
                # Readers look at the copies after they have read the disk.
                copies.put(index, disk.read(start, min(CLUSTER, disk.size - start)))

    # ---- the contract -----------------------------------------------------

    @property
    def size(self) -> int:
        return self._live.disk.size

    @property
    def cluster_size(self) -> int:
        return CLUSTER

    @classmethod
    def probe(cls, sample: Sample) -> int:
        return 0

    @classmethod
    def open(cls, storage: Storage, around: Surroundings) -> Self:
        raise NotImplementedError("an instant has no file; take it with LiveDisk.instant()")

    def info(self) -> DiskInfo:
        below = self._live.disk
        return DiskInfo(
            str(below.path or below.format), self.format, self.size, 0, CLUSTER, None, None
        )

    def _read(self, offset: int, views: Views) -> None:
        if self.newer is not None:
            self.newer._read(offset, views)
        else:
            self._live.disk.read_into(offset, views)
        copies = self._copies
        if copies is None or copies.count == 0:
            return
        end = offset + total(views)
        for index in range(offset // CLUSTER, -(-end // CLUSTER)):
            place = copies.place(index)
            if place is not None:
                start = max(offset, index * CLUSTER)
                stop = min(end, (index + 1) * CLUSTER)
                part = cut(views, start - offset, stop - start)
                copies.read_into(place + start - index * CLUSTER, part)

    def _status(self, offset: int, length: int, depth: int, layers: int | None) -> Iterator[Extent]:
        # As in `_read`: first the disk, then what was saved from it.
        below = self.newer if self.newer is not None else self._live.disk
        extents = list(below.block_status(offset, length))
        copies = self._copies
        for extent in extents:
            end = extent.offset + extent.length
            at = extent.offset
            while at < end:
                index = at // CLUSTER
                stop = min(end, (index + 1) * CLUSTER)
                saved = copies is not None and copies.place(index) is not None
                kind = Kind.DATA if saved else extent.kind
                yield Extent(at, stop - at, kind, depth)
                at = stop

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        for extent in self._status(offset, length, 0, None):
            kind = Kind.ZERO if extent.kind is Kind.ABSENT else extent.kind
            yield Run(extent.length, kind)

    def _write(self, offset: int, views: Views) -> None:
        raise _immutable()

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        raise _immutable()

    def _discard(self, offset: int, length: int) -> None:
        raise _immutable()

    def _flush(self) -> None:
        raise _immutable()


def _immutable() -> DiskReadOnlyError:
    return DiskReadOnlyError("the content of a disk at an instant does not change")
