"""Comparing the contents of two disks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ringzero.disk.contract import Disk
from ringzero.disk.copying import WINDOW
from ringzero.records import record


@record
class Difference:
    """Where two disks differ first: the byte offset, or None when only their sizes do."""

    offset: int | None
    sizes: tuple[int, int]

    def __str__(self) -> str:
        if self.offset is None:
            return f"Image size mismatch: {self.sizes[0]} and {self.sizes[1]} bytes"
        return f"Content mismatch at offset {self.offset}"


def compare(
    first: Disk,
    second: Disk,
    *,
    strict: bool = False,
    threads: int = 2,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Difference | None:
    """Return how two disks differ, None when they do not.

    Without `strict`, a longer disk may have zeroes at its end. With it, also
    what is allocated must be the same, as in `qemu-img compare -s`.
    """
    sizes = first.size, second.size
    if strict and first.size != second.size:
        return Difference(None, sizes)
    waiting: deque[tuple[int, Future[int | None]]] = deque()
    with ThreadPoolExecutor(threads, "ringzero-compare") as pool:
        try:
            for start, length in _suspects(first, second, strict):
                if length < 0:
                    # Allocated in one only; what comes before may differ earlier.
                    while waiting:
                        found = _next(waiting, on_progress)
                        if found is not None:
                            return Difference(found, sizes)
                    return Difference(start, sizes)
                waiting.append((start, pool.submit(_differ, first, second, start, length)))
                if len(waiting) > 2 * threads:
                    found = _next(waiting, on_progress)
                    if found is not None:
                        return Difference(found, sizes)
            while waiting:
                found = _next(waiting, on_progress)
                if found is not None:
                    return Difference(found, sizes)
        finally:
            for _, future in waiting:
                future.cancel()
    on_progress(max(sizes))
    return None


def _next(
    waiting: deque[tuple[int, Future[int | None]]], on_progress: Callable[[int], None]
) -> int | None:
    start, future = waiting.popleft()
    found = future.result()
    on_progress(start)
    return found


def _suspects(first: Disk, second: Disk, strict: bool) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of what is not known to be zero in both; length -1: differs."""
    # Where both are: (end, whether it is known to be zero) of either disk.
    common = min(first.size, second.size)
    left, right = _known(first, common), _known(second, common)
    at = 0
    a, b = next(left, None), next(right, None)
    while a is not None and b is not None:
        stop = min(a[0], b[0])
        if strict and a[1] != b[1]:
            yield at, -1
            return
        if not (a[1] and b[1]):
            for start in range(at, stop, WINDOW):
                yield start, min(WINDOW, stop - start)
        at = stop
        a = next(left, None) if a[0] == stop else a
        b = next(right, None) if b[0] == stop else b
    longer = first if first.size > second.size else second
    for extent in longer.block_status(common, longer.size - common):
        if not extent.reads_zero:
            for start in range(extent.offset, extent.offset + extent.length, WINDOW):
                yield start, min(WINDOW, extent.offset + extent.length - start)


def _known(disk: Disk, length: int) -> Iterator[tuple[int, bool]]:
    for extent in disk.block_status(0, length):
        yield extent.offset + extent.length, extent.reads_zero


def _differ(first: Disk, second: Disk, offset: int, length: int) -> int | None:
    """Return the first byte of a range that differs, None when none does."""
    one, two = _piece(first, offset, length), _piece(second, offset, length)
    if one == two:
        return None
    low, high = 0, length
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] != two[low:middle]:
            high = middle
        else:
            low = middle
    return offset + low


def _piece(disk: Disk, offset: int, length: int) -> bytearray:
    """Return bytes of a disk, zeroes past its end. A bytearray compares fast."""
    data = bytearray(length)
    there = max(0, min(length, disk.size - offset))
    if there:
        disk.read_into(offset, memoryview(data)[:there])
    return data
