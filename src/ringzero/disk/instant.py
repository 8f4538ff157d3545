"""The content of a disk at an instant, while the disk goes on being written to.

`LiveDisk` stands between a machine and its disk. Once an instant was taken,
whatever is about to be overwritten is copied aside first (copy before write),
so the machine keeps writing to its own image, with all that flush promises,
and the instant reads as it was. Copies go to the newest instant only; an older
one looks into its own copies, then into the newer one's, then at the disk.

The image stays open, and locked, until the machine and the last instant have
let go of it. Copies lie in anonymous memory, as much as the machine overwrites.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Self

from ringzero.disk.contract import Disk, DiskInfo, Extent, Kind, Run, Sample, Surroundings
from ringzero.disk.overlay import OverlayDisk
from ringzero.disk.storage import MemoryStorage, Storage
from ringzero.disk.vectors import Buffers, Views, as_views, cut, total
from ringzero.errors import DiskReadOnlyError
from ringzero.units import KIB

# What is copied aside at once; as the overlay's clusters, for the same reason.
CLUSTER = 64 * KIB


class LiveDisk:
    """A machine's disk, of which instants can be taken; owns `disk`.

    Has what a block device needs of a disk, and is as safe for threads.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.read_only = disk.read_only
        self.read_into = disk.read_into
        self.flush = disk.flush
        self._newest: InstantDisk | None = None
        # Guards the instants' counts too; held while something is copied aside.
        self.lock = threading.RLock()
        self._holders = 1
        self._closed = False

    @property
    def size(self) -> int:
        """The guest-visible size in bytes."""
        return self.disk.size

    def write(self, offset: int, buffers: Buffers) -> None:
        """Write as `Disk.write` does."""
        if self._newest is not None:
            self._save(offset, total(as_views(buffers)))
        self.disk.write(offset, buffers)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make a range read as zeroes."""
        self._save(offset, length)
        self.disk.write_zeroes(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        """Say that a range is no longer needed."""
        self._save(offset, length)
        self.disk.discard(offset, length)

    def _save(self, offset: int, length: int) -> None:
        with self.lock:
            if self._newest is not None:
                self._newest.keep(offset, length)

    def instant(self) -> InstantDisk:
        """Return the content as it is now, to be closed; no write may be in flight."""
        with self.lock:
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
            try:
                self.flush()
            finally:
                self._release()

    def _release(self) -> None:
        self._holders -= 1
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
        self._storage: Storage | None = None
        self._saved: dict[int, int] = {}
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
            if self._storage is not None:
                self._storage.close()
            if self.newer is not None:
                self.newer.close()
            self._live.forget(self)

    # ---- copies -----------------------------------------------------------

    @property
    def untouched(self) -> bool:
        """Whether nothing was written since."""
        return not self._saved

    def keep(self, offset: int, length: int) -> None:
        """Copy aside what a range holds, before it is overwritten; the live disk's lock is held."""
        disk = self._live.disk
        # Ranges outside the disk are refused by the write that follows.
        end = min(offset + length, disk.size)
        for index in range(max(0, offset) // CLUSTER, -(-end // CLUSTER)):
            if index not in self._saved:
                if self._storage is None:
                    self._storage = MemoryStorage("ringzero-instant")
                start = index * CLUSTER
                data = disk.read(start, min(CLUSTER, disk.size - start))
                host = len(self._saved) * CLUSTER
                self._storage.write(host, data)
                # Readers look here after they have read the disk.
                self._saved[index] = host

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
        saved, storage = self._saved, self._storage
        if not saved or storage is None:
            return
        end = offset + total(views)
        for index in range(offset // CLUSTER, -(-end // CLUSTER)):
            host = saved.get(index)
            if host is not None:
                start = max(offset, index * CLUSTER)
                stop = min(end, (index + 1) * CLUSTER)
                storage.read_into(
                    host + start - index * CLUSTER, cut(views, start - offset, stop - start)
                )

    def _status(self, offset: int, length: int, depth: int, layers: int | None) -> Iterator[Extent]:
        # As in `_read`: first the disk, then what was saved from it.
        below = self.newer if self.newer is not None else self._live.disk
        for extent in list(below.block_status(offset, length)):
            end = extent.offset + extent.length
            at = extent.offset
            while at < end:
                index = at // CLUSTER
                stop = min(end, (index + 1) * CLUSTER)
                kind = Kind.DATA if index in self._saved else extent.kind
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
