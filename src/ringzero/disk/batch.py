"""Several requests handed over at once: what is cached is done at once, the rest overlaps.

One thread is enough to keep a host's disk busy: it takes from the page cache
what is there, tells the host about all the rest, and then waits for one after
the other. Threads only pay for requests so large that copying takes the time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ringzero.disk.vectors import Buffers, Views
from ringzero.units import MIB

if TYPE_CHECKING:
    from ringzero.disk.contract import Disk

# One request of a batch: where on the disk, and the buffers to fill or to write.
Request = tuple[int, Buffers]
Checked = tuple[int, Views]

# Requests of this size on average are worth a second thread: copying one takes 50 microseconds.
_LARGE = MIB // 2

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def read(disk: Disk, requests: Sequence[Checked], sizes: int) -> None:
    """Fill the buffers of all requests, which have been checked; `sizes` is their bytes in all."""
    _share(lambda part: _read_some(disk, part), requests, sizes)


def write(disk: Disk, requests: Sequence[Checked], sizes: int) -> None:
    """Write all requests, which have been checked and do not depend on one another."""

    def some(part: Sequence[Checked]) -> None:
        for offset, views in part:
            disk._write(offset, views)

    _share(some, requests, sizes)


def _read_some(disk: Disk, requests: Sequence[Checked]) -> None:
    waiting = [(at, views) for at, views in requests if not disk._read_cached(at, views)]
    if len(waiting) > 1:
        for offset, views in waiting:
            disk._announce(offset, views)
    for offset, views in waiting:
        disk._read(offset, views)


def _share(
    call: Callable[[Sequence[Checked]], None], requests: Sequence[Checked], sizes: int
) -> None:
    """Call `call` with all requests, or with one half here and one in another thread."""
    count = len(requests)
    if count < 2 or sizes < count * _LARGE:
        call(requests)
        return
    half = count // 2
    other = _helpers().submit(call, requests[half:])
    try:
        call(requests[:half])
    finally:
        other.result()


def _helpers() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count() or 1, "ringzero-batch")
        return _pool
