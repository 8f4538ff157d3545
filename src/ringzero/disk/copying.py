"""Copying the contents of one disk to another: what holds data is read, what is zero is not.

The disk is cut into pieces of about a window of data each. A piece is read and
written by one thread, in whose processor's cache it stays; while it is written,
others read. Python is in the way once for a piece, which may hold a thousand
short extents: such a piece is Python's work more than the host's, and no other
thread's.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from ringzero.disk.contract import Compression, Disk, Kind
from ringzero.disk.storage import Holes
from ringzero.disk.vectors import aligned_buffer, fill_zeroes, is_zero
from ringzero.disk.workers import Job, Workers
from ringzero.records import mutable_record
from ringzero.units import KIB, MIB

# What is read from the source: where, and the bytes.
Request = tuple[int, memoryview]

# Large enough to make the interpreter's share small, small enough for the CPU's cache to hold
# it from the read to the write. And for the host to have the pages: with writes of 4 MiB, ext4
# takes pages of 2 MiB, which a virtual machine's host has often yet to provide.
WINDOW = MIB
# More than there are processors on most hosts: some wait for the disk or for their turn to write,
# and a busy host gives each its share.
THREADS = max(4, len(os.sched_getaffinity(0)))
# The shortest run of zeroes that is looked for unasked, as in qemu-img.
SPARSE = 4 * KIB
# Zeroes inside a cluster of the target are left out in pieces of this, at most.
_MAX_UNIT = 64 * KIB
# How much a thread packs at a time: milliseconds of work.
_PACKED = 256 * KIB
# How much the host is told of before it is read: enough to keep a fast disk at work.
_AHEAD = 32 * MIB
# Data with smaller gaps is read at once.
_JOIN = 64 * KIB
# With more parts a piece is Python's work, which one thread at a time does.
_SHARED_PARTS = 64
# More parts than this make no piece cheaper, and hold up whoever waits for it.
_MOST_PARTS = 1024


class Piece(NamedTuple):
    """The parts of a range that are not known to be zero: (offset, length) each.

    `packed` says that reading them takes time of the processor.
    """

    start: int
    end: int
    parts: Sequence[tuple[int, int]]
    packed: bool = False


@mutable_record
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
    sparse: int = SPARSE
    compress: bool = False
    threads: int = THREADS
    on_progress: Callable[[int], None] = lambda done: None
    # Whether a read had to wait for the host's disk.
    waits: bool = False

    def run(self, start: int = 0) -> None:
        """Copy everything from `start` on. Not flushed. An exception stops it in between."""
        length = min(self.source.size, self.target.size)
        compression = self.target.compression if self.compress else None
        if compression is not None:
            worker: _Copier = _Packer(self, compression)
        else:
            worker = _Copier(self) if self.target.backing is None else _Layerer(self)
        waiting: deque[tuple[Piece, Job]] = deque()
        try:
            with Workers(self.threads, "ringzero-copy") as pool:
                self._run(worker, pool, waiting, worker.pieces(start, length))
        except (KeyboardInterrupt, SystemExit):
            # What was under way is written by now.
            while waiting and waiting[0][1].made:
                self._finish(worker, *waiting.popleft())
            raise
        if not self.blank and self.target.size > length:
            self.target.write_zeroes(length, self.target.size - length)
            self.on_progress(self.target.size)

    def _run(
        self,
        worker: _Copier,
        pool: Workers,
        waiting: deque[tuple[Piece, Job]],
        pieces: Iterator[Piece],
    ) -> None:
        try:
            for piece in self._announced(pieces):
                if worker.shares(piece):
                    job = pool.submit(worker.work, piece)
                else:
                    job = Job.made_already(worker.work(piece))
                waiting.append((piece, job))
                while waiting and (waiting[0][1].made or len(waiting) > 2 * self.threads):
                    self._finish(worker, *waiting.popleft())
            while waiting:
                self._finish(worker, *waiting.popleft())
        except BaseException:
            for _, job in waiting:
                job.cancel()
            raise

    def _announced(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Yield `pieces`; those that follow are told to the host, once it had to be waited for."""
        ahead: deque[Piece] = deque()
        told = 0
        for piece in pieces:
            if not self.waits:
                yield piece
                continue
            for offset, length in piece.parts:
                self.source.announce(offset, length)
                told += length
            ahead.append(piece)
            while told > _AHEAD:
                told -= sum(length for _, length in ahead[0].parts)
                yield ahead.popleft()
        yield from ahead

    def _finish(self, worker: _Copier, piece: Piece, job: Job) -> None:
        worker.settle(job.result())
        self.on_progress(piece.end)

    @property
    def unit(self) -> int:
        """The pieces in which data is looked at for zeroes."""
        return unit_of_data(self.target, self.sparse)


class _Copier:
    """Copies pieces; any thread."""

    window = WINDOW

    def __init__(self, plan: Copy) -> None:
        self.plan = plan
        self.unit = plan.unit
        # The host lets one thread at a time write to a file; the others would spin meanwhile.
        self.writing = threading.Lock()
        self._local = threading.local()

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """Cut the source up."""
        # Zeroes between data, which are read with it, must be found again.
        join = _JOIN if 0 < self.plan.sparse <= SPARSE else 0
        return gathered(self.plan.source, start, end, self.window, join)

    def buffer(self) -> memoryview:
        """Return the calling thread's own buffer of one window."""
        found: memoryview | None = getattr(self._local, "buffer", None)
        if found is None:
            found = self._local.buffer = aligned_buffer(self.window)
        return found

    def shares(self, piece: Piece) -> bool:
        """Whether other threads are to copy a piece."""
        return piece.packed or 0 < len(piece.parts) <= _SHARED_PARTS

    def _read(self, piece: Piece, buffer: memoryview) -> list[Request]:
        """Read the parts of a piece into `buffer`, one behind the other."""
        requests: list[Request] = []
        at = 0
        for offset, length in piece.parts:
            requests.append((offset, buffer[at : at + length]))
            at += length
        source = self.plan.source
        for offset, views in source.read_ready(requests):
            self.plan.waits = True
            source.read_into(offset, views)
        return requests

    def work(self, piece: Piece) -> object:
        """Copy a piece; returns what `settle` is to have."""
        self._write(piece, self._read(piece, self.buffer()) if piece.parts else [])
        return None

    def _write(self, piece: Piece, parts: list[Request]) -> None:
        data = parts
        if self.plan.sparse:
            data = []
            for offset, view in parts:
                data += pieces_of_data(view, offset, self.unit)
        with self.writing:
            if self.plan.blank:
                self.plan.target.write_batch(data)
                return
            at = piece.start
            for offset, view in data:
                self.zero(at, offset)
                self.plan.target.write(offset, view)
                at = offset + len(view)
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

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        return windows(self.plan.source, start, end, self.window)

    def shares(self, piece: Piece) -> bool:
        return True

    def work(self, piece: Piece) -> object:
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
                continue
            with self.writing:
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

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        return windows(self.plan.source, start, end, self.window)

    def shares(self, piece: Piece) -> bool:
        return True

    def work(self, piece: Piece) -> object:
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


def unit_of_data(target: Disk, sparse: int = SPARSE) -> int:
    """Return the unit in which data is written to `target`: one is zero, or written whole."""
    return max(sparse, min(target.cluster_size or 0, _MAX_UNIT))


def stored(source: Disk, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Yield what is not known to read as zeroes: (offset, length, whether it is compressed) each.

    Holes that the host has inside of clusters are left out.
    """
    holes = {
        file.name: Holes(file)
        for layer in source.chain()
        for file in layer.sparse_files()
        if file.allocated() < file.size
    }
    for extent in source.block_status(start, end - start) if start < end else ():
        if extent.reads_zero:
            continue
        there = holes.get(extent.path) if extent.path is not None else None
        if there is None or extent.host is None or extent.kind is not Kind.DATA:
            yield extent.offset, extent.length, extent.kind is Kind.COMPRESSED
            continue
        offset = extent.offset
        for length, has_data in there.extents(extent.host, extent.length):
            if has_data:
                yield offset, length, False
            offset += length


def windows(source: Disk, start: int, end: int, size: int) -> Iterator[Piece]:
    """Cut a disk into windows with data; what is zero for long is one piece without parts."""
    at = start
    parts: list[tuple[int, int]] = []
    packed = False
    # Where the window that `parts` belong to ends.
    edge = start
    for first, length, packs in stored(source, start, end):
        offset, stop = first, first + length
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
            packed = packed or packs
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


def gathered(source: Disk, start: int, end: int, size: int, join: int) -> Iterator[Piece]:
    """Cut a disk into pieces with at most `size` bytes of data each, however far apart.

    Data with gaps of `join` bytes and less is one part.
    """
    at = start
    parts: list[tuple[int, int]] = []
    room, packed = size, False
    for first, length, packs in stored(source, start, end):
        offset, stop = first, first + length
        while offset < stop:
            # Long data is cut at the multiples of `size`.
            count = min(stop - offset, size - offset % size)
            last = parts[-1] if parts else (0, 0)
            gap = offset - last[0] - last[1]
            joins = parts and gap <= join
            if count + (gap if joins else 0) > room or packs is not packed:
                if parts:
                    yield Piece(at, offset, parts, packed)
                    at, parts, joins = offset, [], False
                room, packed = size, packs
            if joins:
                parts[-1] = last[0], gap + last[1] + count
                room -= gap + count
            else:
                parts.append((offset, count))
                room = room - count if len(parts) < _MOST_PARTS else 0
            offset += count
    if at < end:
        yield Piece(at, end, parts, packed)


def pieces_of_data(view: memoryview, offset: int, unit: int) -> list[Request]:
    """Return the parts of `view`, whose bytes are those from `offset` on, that are not zero.

    Cut at multiples of `unit` on the disk.
    """
    if offset % unit or len(view) % unit:
        return _pieces_of_odd_data(view, offset, unit)
    firsts = view.cast("Q")[:: unit // 8].tolist()
    if 0 not in firsts:
        # None of the units begins with zeroes.
        return [(offset, view)]
    found: list[Request] = []
    start = at = 0
    for begun, group in groupby(firsts, bool):
        stop = at + unit * len(list(group))
        if begun:
            at = stop
        elif is_zero(view[at:stop]):
            # All of them at once, as most that begin with zeroes are.
            if start < at:
                found.append((offset + start, view[start:at]))
            start = at = stop
        while at < stop:
            if is_zero(view[at : at + unit]):
                if start < at:
                    found.append((offset + start, view[start:at]))
                start = at + unit
            at += unit
    if start < at:
        found.append((offset + start, view[start:]))
    return found


def _pieces_of_odd_data(view: memoryview, offset: int, unit: int) -> list[Request]:
    """Return what `pieces_of_data` does, for data that does not begin or end with a unit."""
    end = offset + len(view)
    found: list[Request] = []
    start, at = offset, offset
    while at < end:
        stop = min((at // unit + 1) * unit, end)
        if is_zero(view[at - offset : stop - offset]):
            if start < at:
                found.append((start, view[start - offset : at - offset]))
            start = stop
        at = stop
    if start < end:
        found.append((start, view[start - offset :]))
    return found
