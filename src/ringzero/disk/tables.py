"""A table of integers in an image (block map, grain table, refcounts), cached in memory.

The entries are held as a native `array`, swapped once when they are read and
once when they are written; only the sectors that changed are written back.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence

from ringzero.disk.contract import SECTOR
from ringzero.disk.storage import Storage

_LITTLE_HOST = sys.byteorder == "little"


class Table:
    """`count` integers at the byte `offset` of `storage`.

    `typecode` is that of `array`: "B", "H", "I" or "Q" (8, 16, 32 or 64 bits).
    Read entries with `table.items[n]`; change them with `set` or `fill`, or in
    `items` followed by `mark`. Not locked: the format's own lock guards changes.
    """

    __slots__ = ("_high", "_low", "_swap", "items", "offset", "storage")

    def __init__(
        self, storage: Storage, offset: int, items: array[int], *, big_endian: bool
    ) -> None:
        self.storage = storage
        self.offset = offset
        self.items = items
        self._swap = big_endian == _LITTLE_HOST and items.itemsize > 1
        self._low = len(items)
        self._high = 0

    @classmethod
    def load(
        cls, storage: Storage, offset: int, count: int, typecode: str, *, big_endian: bool
    ) -> Table:
        """Read a table. The caller has checked that `count` entries are bearable and there."""
        items = array(typecode)
        items.frombytes(storage.read(offset, count * items.itemsize))
        table = cls(storage, offset, items, big_endian=big_endian)
        if table._swap:
            items.byteswap()
        return table

    @classmethod
    def blank(
        cls,
        storage: Storage,
        offset: int,
        count: int,
        typecode: str,
        *,
        big_endian: bool,
        value: int = 0,
    ) -> Table:
        """Make a table that is not in the storage yet; all of it is dirty."""
        table = cls(storage, offset, array(typecode, [value]) * count, big_endian=big_endian)
        table.mark(0, count)
        return table

    @property
    def dirty(self) -> bool:
        """Whether there are changes to write back."""
        return self._low < self._high

    def set(self, index: int, value: int) -> None:
        """Change one entry."""
        self.items[index] = value
        self.mark(index, index + 1)

    def fill(self, index: int, values: array[int]) -> None:
        """Change entries from `index` on."""
        self.items[index : index + len(values)] = values
        self.mark(index, index + len(values))

    def mark(self, low: int, high: int) -> None:
        """Remember that the entries from `low` up to `high` have changed."""
        self._low = min(self._low, low)
        self._high = max(self._high, high)

    def to_bytes(self, low: int = 0, high: int | None = None) -> bytes:
        """Return entries as the image holds them."""
        part = self.items[low:high]
        if self._swap:
            part.byteswap()
        return part.tobytes()

    def write_all(self) -> None:
        """Write the whole table, for its second copy. Not flushed."""
        self.storage.write(self.offset, self.to_bytes())

    def write_back(self) -> None:
        """Write the changed sectors. Not flushed."""
        if not self.dirty:
            return
        size = self.items.itemsize
        # Whole sectors: a disk writes those at once or not at all.
        each = SECTOR // size
        low = self._low // each * each
        high = min(len(self.items), -(-self._high // each) * each)
        self.storage.write(self.offset + low * size, self.to_bytes(low, high))
        self._low, self._high = len(self.items), 0


def units_of(ranges: Sequence[tuple[int, int]], size: int) -> Iterator[int]:
    """Yield the numbers of the units of `size` bytes that sorted (offset, length) lie in, once."""
    following = 0
    for offset, length in ranges:
        first, end = max(following, offset // size), -(-(offset + length) // size)
        yield from range(first, end)
        following = max(following, end)


def count_units(ranges: Sequence[tuple[int, int]], size: int) -> int:
    """Return how many units `units_of` yields."""
    count = following = 0
    for offset, length in ranges:
        first, end = max(following, offset // size), -(-(offset + length) // size)
        count += max(0, end - first)
        following = max(following, end)
    return count


def ranges(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, count) for the runs of consecutive numbers in a sorted list."""
    start = 0
    while start < len(numbers):
        end = start + 1
        while end < len(numbers) and numbers[end] == numbers[end - 1] + 1:
            end += 1
        yield numbers[start], end - start
        start = end
