"""Backup: the disk's content at the moment the job began, to another image.

Copy before write: what the guest is about to overwrite is copied to the target first,
on the guest's thread, if the job has not been there. Each part of the disk is to do,
being copied by one thread, or done; whoever wants to change a part that is being copied
waits. So no part is copied after it was changed, and memory holds nothing but that map.
A target that fails ends the job; the guest's write goes on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from ringzero.disk.contract import Disk
from ringzero.disk.instant import LiveDisk
from ringzero.disk.jobs.contract import DEFAULTS, PIECE, Job, JobOptions
from ringzero.disk.jobs.dirty import part_size
from ringzero.disk.vectors import aligned_buffer, is_zero
from ringzero.errors import DiskError, InvalidValueError, RingzeroError
from ringzero.units import MIB

_TO_DO, _COPYING, _DONE = 0, 1, 2
# How much of the disk is asked for what it holds at once.
_SCAN = 64 * MIB


class Backup(Job):
    """Copies what `live` holds at `start` to `target`, which it owns from then on.

    `blank` says that the target reads as zeroes. `on_failure` is called when the target is of
    no use to anybody.
    """

    kind = "backup"

    def __init__(
        self,
        live: LiveDisk,
        target: Disk,
        id: str = "backup",
        *,
        blank: bool = True,
        on_failure: Callable[[], None] = lambda: None,
        options: JobOptions = DEFAULTS,
    ) -> None:
        super().__init__(live, id, options)
        self.output = target
        self.target = str(target.path or target.format)
        self._blank = blank
        self._on_failure = on_failure
        self._copied = False
        self._size = live.size
        self._part = part_size(self._size, target.cluster_size or 0)
        # Guarded by `_moved`: one of the three for each part.
        self._parts = bytearray(-(-self._size // self._part))
        self._moved = threading.Condition()
        self._fault: RingzeroError | None = None
        self._over = False

    @property
    def length(self) -> int:
        return self._size

    def attach(self) -> None:
        if self.output.size != self._size:
            raise InvalidValueError(
                f"{self.target} has {self.output.size} bytes, and the disk {self._size}",
                hint="make it of the same size",
            )
        with self.live.still():
            self.live.watch(self)

    # ---- the guest's threads -----------------------------------------------

    def before(self, offset: int, length: int) -> None:
        """Copy what a write is about to change, and wait for what is being copied."""
        first = max(0, offset) // self._part
        stop = min(-(-(offset + length) // self._part), len(self._parts))
        if self._over or first >= stop:
            return
        buffer: memoryview | None = None
        while (taken := self._take(first, stop, self._part)) is not None:
            if buffer is None:
                buffer = memoryview(bytearray(self._part))
            try:
                self._copy(*taken, buffer)
            except RingzeroError as fault:
                self._break(fault)
                return
            except Exception as fault:
                self._break(DiskError(f"{type(fault).__name__}: {fault}"))
                return

    def after(self, offset: int, length: int) -> None:
        """Nothing is to be done after a write."""

    # ---- any thread --------------------------------------------------------

    def _take(self, first: int, stop: int, most: int) -> tuple[int, int] | None:
        """Take a row of parts to be copied of those from `first` to `stop`: (index, count).

        Return None once all of them are done, or the job is over.
        """
        with self._moved:
            while not self._over:
                index = self._parts.find(_TO_DO, first, stop)
                if index >= 0:
                    end = index + 1
                    while end < stop and (end - index + 1) * self._part <= most:
                        if self._parts[end] != _TO_DO:
                            break
                        end += 1
                    self._parts[index:end] = bytes((_COPYING,)) * (end - index)
                    return index, end - index
                if self._parts.find(_COPYING, first, stop) < 0:
                    return None
                self._moved.wait()
            return None

    def _copy(self, index: int, count: int, buffer: memoryview) -> None:
        """Copy parts that were taken; the caller is inside the gate."""
        try:
            start = index * self._part
            view = buffer[: min(start + count * self._part, self._size) - start]
            self.live.disk.read_into(start, view)
            if not is_zero(view):
                self.output.write(start, view)
            elif not self._blank:
                self.output.write_zeroes(start, len(view))
        finally:
            self._mark_done(index, count)

    def _mark_done(self, index: int, count: int) -> None:
        with self._moved:
            self._parts[index : index + count] = bytes((_DONE,)) * count
            done = self.offset + count * self._part
            self.offset = min(done, self._size)
            self._moved.notify_all()

    def _break(self, fault: RingzeroError) -> None:
        with self._moved:
            self._fault = self._fault or fault
            self._over = True
            self._moved.notify_all()

    # ---- the job's thread --------------------------------------------------

    def work(self) -> None:
        buffer = aligned_buffer(max(PIECE, self._part))
        row = max(1, _SCAN // self._part)
        for first in range(0, len(self._parts), row):
            stop = min(first + row, len(self._parts))
            if self._blank:
                self._skip_zeroes(first, stop)
            while True:
                with self.live.passing():
                    taken = self._take(first, stop, PIECE)
                    if taken is not None:
                        self._copy(*taken, buffer)
                if taken is None:
                    break
                self.checkpoint(taken[1] * self._part)
            self.checkpoint()
            self._check()

    def _check(self) -> None:
        """Raise what a guest's thread failed of."""
        if self._fault is not None:
            raise self._fault

    def _skip_zeroes(self, first: int, stop: int) -> None:
        """Have the parts done that are known to be zero; nobody changes one meanwhile."""
        start = first * self._part
        length = min(stop * self._part, self._size) - start
        with self.live.passing(), self._moved:
            for extent in self.live.disk.block_status(start, length):
                if not extent.reads_zero:
                    continue
                low = -(-extent.offset // self._part)
                end = extent.offset + extent.length
                high = -(-end // self._part) if end == self._size else end // self._part
                for index in range(low, high):
                    if self._parts[index] == _TO_DO:
                        self._mark_done(index, 1)

    def prepare(self) -> None:
        self._check()
        self.live.unwatch(self)
        self.output.flush()
        self._copied = True

    def detach(self) -> None:
        self.live.unwatch(self)
        with self._moved:
            self._over = True
            self._moved.notify_all()
        # Who is copying still writes to the target.
        with self.live.still():
            pass
        with contextlib.suppress(Exception):
            self.output.close()
        if not self._copied:
            self._on_failure()
