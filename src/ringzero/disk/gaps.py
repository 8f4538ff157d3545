"""Space in an image's file that no table names, and how much of it the host has to keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ringzero.disk.storage import Storage
from ringzero.units import MIB

# What nearly all file systems allocate in.
_HOST_BLOCK = 4096

# What tables leave behind when they move; not worth a word.
_SCRAP = 16384

Range = tuple[int, int]


def gaps(taken: Iterable[Range], start: int, end: int) -> Iterator[Range]:
    """Yield the (start, end) of what lies between `start` and `end` and is not in `taken`."""
    for low, high in sorted(taken):
        if low > start:
            yield start, min(low, end)
        start = max(start, high)
        if start >= end:
            return
    if start < end:
        yield start, end


def data_in(storage: Storage, start: int, end: int) -> int:
    """Return how many bytes of a range of the file take room on the host.

    The edges may belong to a host block that is in use, and count for nothing; nor do scraps.
    """
    start = -(-start // _HOST_BLOCK) * _HOST_BLOCK
    there = max(0, min(end, storage.size) // _HOST_BLOCK * _HOST_BLOCK - start)
    found = sum(length for length, has_data in storage.extents(start, there) if has_data)
    return found if found > _SCRAP else 0


def copy_bytes(storage: Storage, source: int, target: int, length: int) -> None:
    """Copy a range of the file to another place in it."""
    for done in range(0, length, MIB):
        piece = min(MIB, length - done)
        storage.write(target + done, storage.read(source + done, piece))
