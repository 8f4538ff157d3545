"""Which parts of a disk are to be copied; marked by the guest's threads, taken by a job's."""

from __future__ import annotations

import threading

from ringzero.units import KIB, MIB

# The smallest part that is told apart, and the most parts that there are: a mebibyte of them.
_SMALLEST = 64 * KIB
_MOST = MIB


def part_size(size: int, at_least: int = 0) -> int:
    """Return the size of the parts of a disk of `size` bytes: a power of two."""
    part = _SMALLEST
    while part < at_least or part * _MOST < size:
        part *= 2
    return part


class DirtyMap:
    """The dirty parts of a disk of `size` bytes, a byte for each."""

    def __init__(self, size: int, at_least: int = 0) -> None:
        self._size = size
        self.part = part_size(size, at_least)
        self._parts = bytearray(-(-size // self.part))
        self._lock = threading.Lock()
        self._count = 0

    @property
    def dirty_bytes(self) -> int:
        """How many bytes are to be copied."""
        return self._count * self.part

    def mark(self, offset: int, length: int) -> None:
        """Mark a range, of which some may be outside the disk."""
        first = max(0, offset) // self.part
        stop = min(-(-(offset + length) // self.part), len(self._parts))
        if first >= stop:
            return
        with self._lock:
            self._count += self._parts.count(0, first, stop)
            self._parts[first:stop] = b"\1" * (stop - first)

    def take(self, start: int, most: int) -> tuple[int, int] | None:
        """Take the next dirty range from `start` on, around the end if need be.

        Return (offset, length), at most about `most` bytes, which count as clean from now on;
        None when nothing is dirty.
        """
        with self._lock:
            first = self._parts.find(1, start // self.part)
            if first < 0:
                first = self._parts.find(1)
            if first < 0:
                return None
            limit = first + max(1, most // self.part)
            stop = self._parts.find(0, first, limit)
            stop = min(limit, len(self._parts)) if stop < 0 else stop
            self._parts[first:stop] = bytes(stop - first)
            self._count -= stop - first
        offset = first * self.part
        return offset, min(stop * self.part, self._size) - offset
