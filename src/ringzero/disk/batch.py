"""Several requests handed over at once: what is cached is done at once, the rest overlaps.

One thread is enough to keep a host's disk busy: it takes from the page cache
what is there, tells the host about all the rest, and then waits for one after
the other. A second thread only pays for copying megabytes out of the cache;
writes to one file wait for each other in the host anyway.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringzero.disk.vectors import Buffers, Views, total
from ringzero.units import MIB

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from ringzero.disk.contract import Disk

# One request of a batch: where on the disk, and the buffers to fill or to write.
Request = tuple[int, Buffers]
Checked = tuple[int, Views]

# Requests of this size on average are worth a second thread: copying one takes 50 microseconds.
_LARGE = MIB // 2

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _after_fork() -> None:
    """Forget the threads, which the child does not have."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def read(disk: Disk, requests: Sequence[Checked], length: int) -> None:
    """Fill the buffers of all requests, which have been checked; `length` is their sum."""
    count = len(requests)
    if count < 2 or length < count * _LARGE:
        waiting = disk._read_ready(requests)
    elif not disk._read_ready(requests[:1]):
        half = (count + 1) // 2
        other = _helpers().submit(disk._read_ready, requests[half:])
        try:
            waiting = disk._read_ready(requests[1:half])
        finally:
            # The buffers are the caller's again when this returns, whatever happened.
            rest = other.result()
        waiting += rest
    else:
        # In order and from one thread, or the host would not read ahead.
        waiting = list(requests)
    if len(waiting) > 1:
        expected = -1
        for offset, views in waiting:
            # What goes on where the one before ends, the host reads ahead by itself.
            if offset != expected:
                disk._announce(offset, views)
            expected = offset + total(views)
    for offset, views in waiting:
        disk._read(offset, views)


def _helpers() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            # It brings logging with it, which opening a disk does not need.
            from concurrent.futures import ThreadPoolExecutor

            _pool = ThreadPoolExecutor(os.cpu_count() or 1, "ringzero-batch")
        return _pool
