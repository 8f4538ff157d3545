"""Copying the contents of one disk to another: what holds data is read, what is zero is not.

The disk is cut into windows. They are read one after the other, as the host
likes it best, and other threads look for zeroes and write the rest; what must
be unpacked is read by those too. Python is in the way once for a window, not
for a cluster.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

from ringzero.disk.contract import Compression, Disk, Kind
from ringzero.disk.vectors import aligned_buffer, fill_zeroes, is_zero
from ringzero.units import KIB, MIB

# Large enough to make the interpreter's share small, small enough for the
# CPU's cache to hold it from the read to the write.
WINDOW = MIB
# Zeroes inside a cluster of the target are left out in pieces of this, at most.
_MAX_UNIT = 64 * KIB
# How much a thread packs at a time: milliseconds of work.
_PACKED = 256 * KIB
# How much the host is told of before it is read: enough to keep a fast disk at work.
_AHEAD = 32 * MIB
# Data with smaller gaps is read at once.
_JOIN = 64 * KIB


@dataclass(frozen=True)
class Piece:
    """The parts of one window that are not known to be zero: (offset, length) each.

    `packed` says that reading them takes time of the processor.
    """

    start: int
    end: int
    parts: tuple[tuple[int, int], ...]
    packed: bool = False


@dataclass
class Copy:
    """How to copy. Sizes in bytes.

    `blank` says that the target reads as zeroes already; an overlay takes what
    differs from its backing file. `sparse` is the
    smallest run of zeroes that is looked for in data (0: none is).
    `compress` packs what can be packed. `on_progress` is told how far the
    copy is, and that everything before is written (though not flushed).
    """

    source: Disk
    target: Disk
    blank: bool = True
    sparse: int = 4096
    compress: bool = False
    threads: int = 2
    on_progress: Callable[[int], None] = lambda done: None

    def run(self, start: int = 0) -> None:
        """Copy everything from `start` on. Not flushed. An exception stops it in between."""
        length = min(self.source.size, self.target.size)
        compression = self.target.compression if self.compress else None
        if compression is not None:
            worker: _Copier = _Packer(self, compression)
        else:
            worker = _Copier(self) if self.target.backing is None else _Layerer(self)
        waiting: deque[tuple[Piece, Future[object]]] = deque()
        with ThreadPoolExecutor(self.threads, "ringzero-copy") as pool:
            try:
                for piece in self._announced(windows(self.source, start, length, worker.window)):
                    loaded = worker.load(piece)
                    waiting.append((piece, pool.submit(worker.work, piece, loaded)))
                    if len(waiting) > 2 * self.threads:
                        self._finish(worker, *waiting.popleft())
                while waiting:
                    self._finish(worker, *waiting.popleft())
            except BaseException:
                for _, future in waiting:
                    future.cancel()
                raise
        if not self.blank and self.target.size > length:
            self.target.write_zeroes(length, self.target.size - length)
            self.on_progress(self.target.size)

    def _announced(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Yield `pieces`, each after the host was told of those that follow it."""
        ahead: deque[Piece] = deque()
        told = 0
        for piece in pieces:
            for offset, length in piece.parts:
                self.source.announce(offset, length)
                told += length
            ahead.append(piece)
            while told > _AHEAD:
                told -= sum(length for _, length in ahead[0].parts)
                yield ahead.popleft()
        yield from ahead

    def _finish(self, worker: _Copier, piece: Piece, future: Future[object]) -> None:
        worker.settle(future.result())
        self.on_progress(piece.end)

    @property
    def unit(self) -> int:
        """The pieces in which data is looked at for zeroes."""
        return max(self.sparse, min(self.target.cluster_size or 0, _MAX_UNIT))


class _Copier:
    """Copies windows; any thread."""

    window = WINDOW

    def __init__(self, plan: Copy) -> None:
        self.plan = plan
        self.unit = plan.unit
        self._local = threading.local()
        # Buffers for what is read ahead of the threads.
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        for _ in range(plan.threads + 1):
            self._free.put(aligned_buffer(self.window))

    def buffer(self) -> memoryview:
        """Return the calling thread's own buffer of one window."""
        found: memoryview | None = getattr(self._local, "buffer", None)
        if found is None:
            found = self._local.buffer = aligned_buffer(self.window)
        return found

    def load(self, piece: Piece) -> memoryview | None:
        """Read a window ahead, in order; None when `work` is to read it."""
        if not piece.parts or piece.packed:
            return None
        loaded = self._free.get()
        try:
            self._read(piece, loaded)
        except BaseException:
            self._free.put(loaded)
            raise
        return loaded

    def _read(self, piece: Piece, view: memoryview) -> None:
        base = piece.parts[0][0]
        for offset, length in piece.parts:
            at = offset - base
            self.plan.source.read_into(offset, view[at : at + length])

    def work(self, piece: Piece, loaded: memoryview | None) -> object:
        """Copy a window, which `load` has read or not; returns what `settle` is to have."""
        try:
            view = loaded
            if view is None and piece.parts:
                view = self.buffer()
                self._read(piece, view)
            if view is not None:
                self._write(piece, view)
            else:
                self.zero(piece.start, piece.end)
        finally:
            if loaded is not None:
                self._free.put(loaded)
        return None

    def _write(self, piece: Piece, view: memoryview) -> None:
        target = self.plan.target
        base, at = piece.parts[0][0], piece.start
        for offset, length in piece.parts:
            self.zero(at, offset)
            part = view[offset - base : offset - base + length]
            if not self.plan.sparse:
                target.write(offset, part)
            else:
                for start, count, blank in runs_of_zeroes(part, offset, self.unit):
                    if blank:
                        self.zero(start, start + count)
                    else:
                        inside = start - offset
                        target.write(start, part[inside : inside + count])
            at = offset + length
        self.zero(at, piece.end)

    def zero(self, start: int, end: int) -> None:
        if start < end and not self.plan.blank:
            self.plan.target.write_zeroes(start, end - start)

    def settle(self, result: object) -> None:
        """Take what `work` returned, in the order of the windows."""


class _Packer(_Copier):
    """Packs whole units in many threads and stores them in order."""

    def __init__(self, plan: Copy, compression: Compression) -> None:
        super().__init__(plan)
        self.compression = compression
        # Whole units, and enough of them that a thread has something to do.
        self.window = max(compression.unit, _PACKED // compression.unit * compression.unit)

    def load(self, piece: Piece) -> None:
        """Packing takes much longer than reading; all of it is done by the threads."""

    def work(self, piece: Piece, loaded: memoryview | None) -> object:
        plan, compression = self.plan, self.compression
        view = self.buffer()
        if piece.parts:
            plan.source.read_into(piece.start, view[: piece.end - piece.start])
        found: list[tuple[int, bytes]] = []
        unit = compression.unit
        for start in range(piece.start, piece.end if piece.parts else piece.start, unit):
            data = view[start - piece.start : min(start + unit, piece.end) - piece.start]
            if is_zero(data):
                self.zero(start, start + len(data))
                continue
            packed = compression.pack(data)
            if packed is not None:
                found.append((start, packed))
            else:
                plan.target.write(start, data)
        if not piece.parts:
            self.zero(piece.start, piece.end)
        return found

    def settle(self, result: object) -> None:
        assert isinstance(result, list)
        for offset, packed in result:
            self.compression.store(offset, packed)


class _Layerer(_Copier):
    """Copies into an overlay only what differs from its backing file."""

    def load(self, piece: Piece) -> None:
        """The threads compare windows of two disks, and read both."""

    def work(self, piece: Piece, loaded: memoryview | None) -> object:
        target = self.plan.target
        below = target.backing
        assert below is not None
        for low in range(piece.start, piece.end, self.window):
            length = min(self.window, piece.end - low)
            view = self.buffer()[:length]
            if piece.parts:
                self.plan.source.read_into(low, view)
            else:
                fill_zeroes([view])
            there = max(0, min(length, below.size - low))
            old = bytearray(length)
            if there:
                below.read_into(low, memoryview(old)[:there])
            if old == view:
                continue
            for at in range(0, length, self.unit):
                new = view[at : at + self.unit]
                if old[at : at + self.unit] == new:
                    continue
                if is_zero(new):
                    target.write_zeroes(low + at, len(new))
                else:
                    target.write(low + at, new)
        return None


def windows(source: Disk, start: int, end: int, size: int) -> Iterator[Piece]:
    """Cut a disk into windows with data; what is zero for long is one piece without parts."""
    at = start
    parts: list[tuple[int, int]] = []
    packed = False
    # Where the window that `parts` belong to ends.
    edge = start
    for extent in source.block_status(start, end - start) if start < end else ():
        if extent.reads_zero:
            continue
        offset, stop = extent.offset, extent.offset + extent.length
        while offset < stop:
            if offset >= edge:
                if parts:
                    yield Piece(at, edge, tuple(parts), packed)
                    at, parts, packed = edge, [], False
                low = offset // size * size
                if low > at:
                    yield Piece(at, low, ())
                    at = low
                edge = min(low + size, end)
            piece = min(stop, edge) - offset
            packed = packed or extent.kind is Kind.COMPRESSED
            last = parts[-1] if parts else None
            if last is not None and offset - last[0] - last[1] <= _JOIN:
                parts[-1] = last[0], offset + piece - last[0]
            else:
                parts.append((offset, piece))
            offset += piece
    if parts:
        yield Piece(at, edge, tuple(parts), packed)
        at = edge
    if at < end:
        yield Piece(at, end, ())


def runs_of_zeroes(view: memoryview, offset: int, unit: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (offset, length, is zero) over the bytes of `view`, which are those from `offset` on.

    Cut at multiples of `unit` on the disk.
    """
    end = offset + len(view)
    if not (offset % unit or len(view) % unit) and 0 not in view.cast("Q")[:: unit // 8].tolist():
        # None of the pieces begins with zeroes.
        yield offset, len(view), False
        return
    start = at = offset
    blank: bool | None = None
    blanks = bytearray(unit)
    while at < end:
        stop = min((at // unit + 1) * unit, end)
        part = view[at - offset : stop - offset]
        now = blanks == part if stop - at == unit else is_zero(part)
        if now is not blank:
            if blank is not None:
                yield start, at - start, blank
            start, blank = at, now
        at = stop
    if blank is not None:
        yield start, end - start, blank
