"""Timing requests through the contract: so many, of one size, so many in flight."""

from __future__ import annotations

import itertools
import random
import threading
import time

from ringzero.disk.contract import Disk
from ringzero.errors import InvalidValueError
from ringzero.records import record


@record
class Load:
    """What to send. Sizes in bytes; `step` is from one request to the next (0: `size`)."""

    count: int = 75_000
    depth: int = 64
    size: int = 4096
    offset: int = 0
    step: int = 0
    write: bool = False
    pattern: int = 0
    random: bool = False
    flush_interval: int = 0


@record
class Timing:
    """How long it took."""

    seconds: float
    requests: int
    bytes: int

    def to_dict(self) -> dict[str, float]:
        """Return plain data, with the rates."""
        return {
            "seconds": self.seconds,
            "requests": self.requests,
            "requests-per-second": self.requests / self.seconds,
            "bytes-per-second": self.bytes / self.seconds,
        }


def run(disk: Disk, load: Load) -> Timing:
    """Send `load` to `disk` and wait for the last request."""
    room = disk.size - load.offset
    if load.size <= 0 or load.count <= 0 or load.depth <= 0 or not 0 < load.size <= room:
        raise InvalidValueError("a request of this size does not fit on the disk")
    slots = max(1, (room - load.size) // (load.step or load.size) + 1)
    # One at a time takes no thread; more than a few dozen add nothing.
    threads = min(load.depth, 16)
    numbers = itertools.count()
    faults: list[BaseException] = []

    def work(seed: int) -> None:
        buffer = memoryview(bytearray([load.pattern]) * load.size)
        dice = random.Random(seed)
        call = disk.write if load.write else disk.read_into
        step = load.step or load.size
        try:
            while (number := next(numbers)) < load.count:
                slot = dice.randrange(slots) if load.random else number % slots
                call(load.offset + slot * step, buffer)
                if load.flush_interval and (number + 1) % load.flush_interval == 0:
                    disk.flush()
        except BaseException as fault:
            faults.append(fault)

    began = time.perf_counter()
    if threads == 1:
        work(0)
    else:
        crew = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(threads)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
    if faults:
        raise faults[0]
    return Timing(time.perf_counter() - began, load.count, load.count * load.size)
