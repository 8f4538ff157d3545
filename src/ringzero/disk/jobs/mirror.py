"""Mirror: the disk's content, and then all that the guest writes, to another image.

No write is lost. The guest writes to its own disk; `after` marks what a write has
changed in a map before the write counts as done. The job takes a part from the map
first and reads it then, so what is written meanwhile is marked again. Once nothing
was left in the map the job is ready, and goes on following the guest. Completing it
copies until little is left, has the disk stand still, copies that, makes the target
durable, has the owner write down that the disk is the target now, and puts the
target in the disk's place. Until the owner has written it down, the disk is the old
file, which has everything; from then on the new one, which has everything, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from enum import Enum
from itertools import groupby

from ringzero.disk.contract import Disk, Kind
from ringzero.disk.instant import LiveDisk
from ringzero.disk.jobs.contract import DEFAULTS, PIECE, Cancelled, Job, JobOptions, Owner
from ringzero.disk.jobs.dirty import DirtyMap
from ringzero.disk.vectors import aligned_buffer, is_zero
from ringzero.errors import InvalidValueError
from ringzero.units import MIB

# What may be left to be copied while the disk stands still, in bytes, and how often it is tried
# to come below that: a guest that writes faster than is copied waits longer.
_LITTLE = 8 * MIB
_ROUNDS = 20
# How often a mirror that is ready looks whether the guest has written, in seconds.
_LOOK = 0.1
# How much of the disk is asked for what it holds at once.
_SCAN = 256 * MIB


class Sync(Enum):
    """What is copied at first."""

    FULL = "full"  # everything
    TOP = "top"  # what the topmost layer holds; the target has the same backing file
    NONE = "none"  # nothing: only what is written from now on


class Mirror(Job):
    """Copies `live` to `target`, which it owns from `start` on; of the same size.

    `blank` says that the target reads as zeroes, or, with Sync.TOP, as the backing file.
    `pivots` False leaves a copy instead, when it is completed. `on_failure` is called when the
    target is of no use to anybody.
    """

    kind = "mirror"

    def __init__(
        self,
        live: LiveDisk,
        target: Disk,
        id: str = "mirror",
        *,
        sync: Sync = Sync.FULL,
        blank: bool = True,
        pivots: bool = True,
        owner: Owner | None = None,
        on_failure: Callable[[], None] = lambda: None,
        options: JobOptions = DEFAULTS,
    ) -> None:
        super().__init__(live, id, options)
        self.output = target
        self.target = str(target.path or target.format)
        self._sync = sync
        self._blank = blank
        self._pivots = pivots
        self._owner = owner or Owner()
        self._on_failure = on_failure
        self._dirty = DirtyMap(live.size, target.cluster_size or 0)
        self._buffer = aligned_buffer(max(PIECE, self._dirty.part))
        # Whether the target is a copy, or the disk itself, now.
        self._copied = self._moved = self._leaves_copy = False
        self._scanned = 0

    @property
    def length(self) -> int:
        ahead = self.live.size - self._scanned if self._sync is not Sync.NONE else 0
        return self.offset + self._dirty.dirty_bytes + ahead

    def attach(self) -> None:
        if self.output.size != self.live.size:
            raise InvalidValueError(
                f"{self.target} has {self.output.size} bytes, and the disk {self.live.size}",
                hint="make it of the same size",
            )
        with self.live.still():
            self.live.watch(self)

    # ---- the guest's threads -----------------------------------------------

    def before(self, offset: int, length: int) -> None:
        """Nothing is to be done before a write."""

    def after(self, offset: int, length: int) -> None:
        """Mark what a write has changed."""
        self._dirty.mark(offset, length)

    # ---- the job's thread --------------------------------------------------

    def work(self) -> None:
        if self._sync is not Sync.NONE:
            while self._scanned < self.live.size:
                self._scan(self._scanned)
                self._copy_dirty()
        self._scanned = self.live.size
        while True:
            self._copy_dirty()
            self.become_ready()
            if self.wait_completing(_LOOK):
                break
            self.checkpoint()
        for _ in range(_ROUNDS):
            if self._dirty.dirty_bytes <= _LITTLE:
                break
            self._copy_dirty()

    def _scan(self, start: int) -> None:
        """Mark what has to be copied of the next part of the disk."""
        length = min(_SCAN, self.live.size - start)
        with self.live.passing():
            for offset, size in self.held(start, length):
                self._dirty.mark(offset, size)
        self._scanned = start + length
        self.checkpoint()

    def held(self, start: int, length: int) -> list[tuple[int, int]]:
        """Return what the target does not read as yet, of a range: (offset, length) each."""
        if not self._blank:
            return [(start, length)]
        layers = 1 if self._sync is Sync.TOP else None
        return [
            (extent.offset, extent.length)
            for extent in self.live.disk.block_status(start, length, layers=layers)
            # What a layer holds as zeroes hides what is below it.
            if not extent.reads_zero or (layers and extent.kind is not Kind.ABSENT)
        ]

    def _copy_dirty(self) -> None:
        at = 0
        while (taken := self._dirty.take(at, PIECE)) is not None:
            offset, length = taken
            with self.live.passing():
                self._read(offset, length)
            self._write(offset, length)
            at = offset + length
            self.offset += length
            self.checkpoint(length)

    def _read(self, offset: int, length: int) -> None:
        self.live.disk.read_into(offset, self._buffer[:length])

    def _write(self, offset: int, length: int) -> None:
        unit = self._dirty.part
        for zero, parts in groupby(
            range(0, length, unit),
            lambda at: is_zero(self._buffer[at : min(at + unit, length)]),
        ):
            row = list(parts)
            start, stop = row[0], min(row[-1] + unit, length)
            if zero:
                self.output.write_zeroes(offset + start, stop - start)
            else:
                self.output.write(offset + start, self._buffer[start:stop])

    def _copy_rest(self) -> None:
        """Copy what is left; the disk stands still."""
        at = 0
        while (taken := self._dirty.take(at, PIECE)) is not None:
            offset, length = taken
            self._read(offset, length)
            self._write(offset, length)
            at = offset + length
            self.offset += length

    def prepare(self) -> None:
        self.output.flush()

    def settle(self) -> None:
        if not self._pivots:
            self._leave_copy()
            return
        with self.holding(self._owner), self.live.still():
            self._copy_rest()
            # What the guest was told to be durable is so in the new file, too.
            self.output.flush()
            self._owner.moved(str(self.output.path), self.output.format)
            self.live.unwatch(self)
            old = self.live.take_over(self.output)
            self._copied = self._moved = True
        self.live.retire(self.left_behind(old))

    def left_behind(self, old: Disk) -> list[Disk]:
        """Return the layers of what was the disk before that belong to it no more."""
        return old.chain()

    def _leave_copy(self) -> None:
        with self.live.still():
            self._copy_rest()
            self.live.unwatch(self)
        self.output.flush()
        self._copied = True

    def _cancel(self, force: bool) -> None:
        if not force and self._state_is_ready():
            self._leaves_copy = True
        super()._cancel(force)

    def _state_is_ready(self) -> bool:
        return self.info().ready

    def detach(self) -> None:
        if self._leaves_copy and self.error is None and not self._copied:
            # Cancelled when it was ready: what is there is the disk as it is at this moment.
            with contextlib.suppress(Exception, Cancelled):
                self._leave_copy()
        self.live.unwatch(self)
        if not self._moved:
            self.release()

    def release(self) -> None:
        """Let go of a target that has not become the disk."""
        with contextlib.suppress(Exception):
            self.output.close()
        if not self._copied:
            self._on_failure()
