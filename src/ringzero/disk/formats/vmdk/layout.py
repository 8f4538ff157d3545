"""Where the structures of a sparse extent lie, so that no grain is written over them."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise

from ringzero.disk.contract import SECTOR
from ringzero.disk.formats.vmdk.header import Header
from ringzero.disk.gaps import Range
from ringzero.disk.paged import PagedTable


class Layout:
    """The header, the descriptor, both directories and all grain tables of an extent.

    `overlap` is true when they lie over one another; nothing may then be written.
    """

    def __init__(
        self, header: Header, directories: Sequence[PagedTable], *, zero_grains: bool
    ) -> None:
        self._taken = sorted(_structures(header, directories))
        self.overlap = any(first[1] > second[0] for first, second in pairwise(self._taken))
        self._starts = array("Q", (start for start, _ in self._taken))
        # Structures are at the front; all that lies behind them needs no search.
        self.end = max(end for _, end in self._taken)
        self._grain = header.grain
        # The lowest entry that is the sector of a grain.
        self._lowest = 2 if zero_grains else 1

    def __iter__(self) -> Iterator[Range]:
        return iter(self._taken)

    def add(self, start: int, end: int) -> None:
        """Take note of a structure at the end of the file."""
        self._taken.append((start, end))
        self._starts.append(start)
        self.end = end

    def covers(self, start: int, length: int) -> bool:
        """Whether a structure lies anywhere in a range of the file."""
        place = bisect.bisect_left(self._starts, start + length)
        return place > 0 and self._taken[place - 1][1] > start

    def unsafe(self, items: array[int]) -> set[int]:
        """Return the entries of a grain table whose grains lie over structures."""
        limit = -(-self.end // SECTOR)
        return {
            entry
            for entry in items
            if self._lowest <= entry < limit and self.covers(entry * SECTOR, self._grain)
        }


def _structures(header: Header, directories: Sequence[PagedTable]) -> Iterator[Range]:
    yield 0, SECTOR
    if header.descriptor_offset:
        start = header.descriptor_offset * SECTOR
        yield start, start + header.descriptor_size * SECTOR
    room = -(-header.per_table * 4 // SECTOR) * SECTOR
    for directory in directories:
        yield directory.offset, directory.offset + 4 * len(directory)
        for sector in directory:
            if sector:
                yield sector * SECTOR, sector * SECTOR + room
