"""Storage for an image that is only made to see whether it can be."""

from __future__ import annotations

from ringzero.disk.storage import MemoryStorage
from ringzero.disk.vectors import Buffers, as_views, total
from ringzero.units import MIB

# No structure of an empty image is written with more than this at once; what is longer are the
# zeroes of a disk whose space is reserved.
_LONGEST = MIB


class TrialStorage(MemoryStorage):
    """Memory that does not keep long zeroes."""

    def write(self, offset: int, buffers: Buffers) -> None:
        views = as_views(buffers)
        if total(views) <= _LONGEST:
            super().write(offset, views)
        else:
            self.reach(offset + total(views))

    def write_zeroes(self, offset: int, length: int, *, keep_space: bool = False) -> None:
        self.reach(offset + length)

    def preallocate(self, offset: int, length: int) -> None:
        self.reach(offset + length)
