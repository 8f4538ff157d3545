"""Several requests handed over at once: what is cached is done at once, the rest overlaps.

One thread is enough to keep a host's disk busy: it takes from the page cache
what is there, tells the host about all the rest, and then waits for one after
the other. A second thread was measured to cost more than it copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringzero.disk.vectors import Buffers, Views, total
from ringzero.units import MIB

if TYPE_CHECKING:
    from ringzero.disk.contract import Disk

# One request of a batch: where on the disk, and the buffers to fill or to write.
Request = tuple[int, Buffers]
Checked = tuple[int, Views]

# Requests of this size on average are not tried one by one: the host reads ahead by itself.
_LARGE = MIB // 2


def read(disk: Disk, requests: Sequence[Checked], length: int) -> None:
    """Fill the buffers of all requests, which have been checked; `length` is their sum."""
    if length < len(requests) * _LARGE:
        requests = disk._read_ready(requests)
    if len(requests) > 1:
        expected = -1
        for offset, views in requests:
            # What goes on where the one before ends needs no word either.
            if offset != expected and expected >= 0:
                disk._announce(offset, total(views))
            expected = offset + total(views)
    for offset, views in requests:
        disk._read(offset, views)
