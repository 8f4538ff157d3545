"""Several requests handed over at once: what is cached is done at once, the rest overlaps.

One thread is enough to keep a host's disk busy: it takes from the page cache
what is there, tells the host about all the rest, and then waits for one after
the other. Where there is much to copy, a second processor does half of it; for
small requests a second thread was measured to cost more than it copies.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from ringzero.disk.vectors import Buffers, Views, total
from ringzero.units import MIB

# One request of a batch: where on the disk, and the buffers to fill or to write.
Request = tuple[int, Buffers]
Checked = tuple[int, Views]

# Requests of this size on average are not tried one by one: the host reads ahead by itself.
_LARGE = MIB // 2
# A batch of large requests with more than this is worth a thread, which costs 0.1 ms to start:
# what is copied in a quarter of a millisecond.
_WORTH_A_THREAD = 4 * MIB
_PROCESSORS = len(os.sched_getaffinity(0))


def read(
    requests: Sequence[Checked],
    length: int,
    *,
    ready: Callable[[Sequence[Checked]], Sequence[Checked]],
    announce: Callable[[int, int], None],
    fill: Callable[[int, Views], None],
) -> None:
    """Fill the buffers of all requests, which have been checked; `length` is their sum.

    `ready` does those that need not wait and returns the others, `announce` tells the host of a
    range, `fill` does one request: `Disk._read_ready`, `_announce` and `_read`.
    """
    if length < len(requests) * _LARGE:
        requests = ready(requests)
    if len(requests) > 1:
        expected = -1
        for offset, views in requests:
            # What goes on where the one before ends needs no word either.
            if offset != expected and expected >= 0:
                announce(offset, total(views))
            expected = offset + total(views)
    if length >= max(_WORTH_A_THREAD, len(requests) * _LARGE) and _PROCESSORS > 1:
        middle = len(requests) // 2
        _at_once(fill, _joined(requests[:middle]), _joined(requests[middle:]))
        return
    for offset, views in requests:
        fill(offset, views)


def _joined(requests: Sequence[Checked]) -> list[Checked]:
    """Return the requests, with those as one that lie behind one another."""
    found: list[Checked] = []
    end = -1
    for offset, views in requests:
        if offset == end:
            first, before = found[-1]
            found[-1] = (first, [*before, *views])
        else:
            found.append((offset, views))
        end = offset + total(views)
    return found


def _at_once(work: Callable[[int, Views], None], half: list[Checked], other: list[Checked]) -> None:
    """Call `work` for all requests, on two threads; raises the first failure once both ended."""
    faults: list[BaseException] = []

    def do(requests: list[Checked]) -> None:
        try:
            for offset, views in requests:
                work(offset, views)
        except BaseException as fault:
            faults.append(fault)

    helper = threading.Thread(target=do, args=(other,), name="disk batch", daemon=True)
    try:
        helper.start()
    except RuntimeError:
        # The host has no thread to spare.
        do(half)
        do(other)
    else:
        do(half)
        helper.join()
    if faults:
        raise faults[0]
