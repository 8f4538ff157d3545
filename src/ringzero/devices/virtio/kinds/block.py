"""virtio block device (virtio 1.2 section 5.2).

Requests are carried out by a worker thread, in order, while the vCPU goes on.
Only a small request that comes alone, while the host answers from its cache,
is carried out at once: that takes less time than waking a thread. A flush is
durable when it completes; the cache is always write-back.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ringzero.core.buckets import Bucket, Tokens
from ringzero.core.views import Buffers, fill, split
from ringzero.devices.virtio.device import VIRTIO_DEVICES, VirtioDevice
from ringzero.devices.virtio.queue import Chain, QueueError
from ringzero.errors import StateError
from ringzero.host.service import ServiceThread, serve_as
from ringzero.records import record

SECTOR = 512
QUEUE_SIZE = 256
FEATURE_SEG_MAX, FEATURE_READ_ONLY, FEATURE_BLOCK_SIZE = 1 << 2, 1 << 5, 1 << 6
FEATURE_FLUSH, FEATURE_DISCARD, FEATURE_WRITE_ZEROES = 1 << 9, 1 << 13, 1 << 14
READ, WRITE, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IO_ERROR, UNSUPPORTED = 0, 1, 2
HEADER = struct.Struct("<IIQ")  # type, reserved, sector
RANGE = struct.Struct("<QII")  # sector, count, flags
ID_SIZE = 20
UNMAP = 1
# Section 5.2.4: capacity, size_max, seg_max, geometry, blk_size, topology, writeback,
# unused, num_queues, then discard and write zeroes: max sectors, max ranges, alignment.
CONFIG = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")
# One gigabyte per range, as QEMU and the Linux block layer are content with.
MAX_RANGE_SECTORS = 1 << 21
MAX_RANGES = 16
# Two descriptors of a chain are the header and the status.
MAX_SEGMENTS = QUEUE_SIZE - 2

# The largest request in bytes that is carried out at once, the time in seconds
# that it may take (a few times what the host's cache needs), and the number of
# requests that go to the worker after one that took longer.
SMALL = 64 * 1024
QUICK = 0.0005
BACK_OFF = 256


class Throttle:
    """How many requests, and bytes of them, are carried out in a while; None is any number."""

    def __init__(
        self,
        requests: Bucket | None = None,
        size: Bucket | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        now = clock()
        self._clock = clock
        self._requests = None if requests is None else Tokens(requests, now)
        self._bytes = None if size is None else Tokens(size, now)

    def wait(self) -> float:
        """Return in how many seconds the next request may begin; 0 is now."""
        now = self._clock()
        buckets = (tokens for tokens in (self._requests, self._bytes) if tokens is not None)
        return max((tokens.wait(now) for tokens in buckets), default=0.0)

    def take(self, size: int) -> None:
        """Pay for a request of `size` bytes."""
        if self._requests is not None:
            self._requests.take(1)
        if self._bytes is not None:
            self._bytes.take(size)


class BlockBackend(Protocol):
    """What the device needs of a disk; `ringzero.disk.contract.Disk` gives it."""

    read_only: bool

    @property
    def size(self) -> int: ...

    def read_into(self, offset: int, buffers: list[memoryview]) -> None: ...

    def write(self, offset: int, buffers: list[memoryview]) -> None: ...

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None: ...

    def discard(self, offset: int, length: int) -> None: ...

    def flush(self) -> None: ...


@record
class BlockState:
    """The disk's size in bytes: a machine is only restored over the same disk."""

    size: int


@VIRTIO_DEVICES.register("block")
class Block(VirtioDevice[BlockState]):
    """A disk. `identity` is what the guest sees as its serial number, up to 20 bytes.

    `errors` counts requests that the disk failed; `last_error` is the newest.
    """

    device_id = 2
    state_type = BlockState

    def __init__(self, disk: BlockBackend, identity: str = "") -> None:
        features = FEATURE_SEG_MAX | FEATURE_BLOCK_SIZE | FEATURE_FLUSH
        if disk.read_only:
            features |= FEATURE_READ_ONLY
        else:
            features |= FEATURE_DISCARD | FEATURE_WRITE_ZEROES
        super().__init__(queue_sizes=(QUEUE_SIZE,), features=features)
        self.errors = 0
        self.last_error: Exception | None = None
        self._disk = disk
        self._identity = identity.encode()[:ID_SIZE].ljust(ID_SIZE, b"\0")
        self._throttle: Throttle | None = None
        # Somebody waits for all requests to be done.
        self._hurries = False
        # How many requests still go to the worker because the disk was slow.
        self._back_off = 0
        # All below is guarded by `_changed`.
        self._changed = threading.Condition()
        self._waiting: deque[Chain] = deque()
        # The worker has a request; it is at the disk with it.
        self._busy = self._at_disk = False
        self._closed = False
        # Counts resets: what was asked before one is not answered after it.
        self._generation = 0
        self._worker: ServiceThread | None = None

    def throttle(self, throttle: Throttle | None) -> None:
        """Limit requests from now on; what waits at a pause is done at once."""
        with self._changed:
            self._throttle = throttle
            self._changed.notify_all()

    # ---- the transport's calls --------------------------------------------

    def config(self) -> bytes:
        limit, ranges = MAX_RANGE_SECTORS, MAX_RANGES
        return CONFIG.pack(
            self._disk.size // SECTOR,
            0,
            MAX_SEGMENTS,
            0,
            0,
            0,
            SECTOR,
            0,
            0,
            0,
            0,
            1,
            1,
            limit,
            ranges,
            1,
            limit,
            ranges,
            1,
        )

    def activate(self) -> None:
        if self._worker is None:
            self._worker = ServiceThread(self, self._work, "virtio-block")
            self._worker.start()

    def resume(self) -> None:
        if self.accepted:
            self.activate()

    def notify(self, index: int) -> None:
        chains = list(self.queues[index].requests())
        if not chains:
            return
        with self._changed:
            idle = not self._busy and not self._waiting
        unlimited = self._throttle is None
        if len(chains) == 1 and idle and unlimited and self._is_quick(chains[0]):
            begin = time.monotonic()
            self._finish(chains[0], *self._attempt(chains[0]))
            if time.monotonic() - begin > QUICK:
                self._back_off = BACK_OFF
            return
        with self._changed:
            self._waiting.extend(chains)
            self._changed.notify_all()

    def _is_quick(self, chain: Chain) -> bool:
        if self._back_off:
            self._back_off -= 1
            return False
        kind = int.from_bytes(chain.gather(4), "little")
        return kind in (READ, WRITE) and chain.readable_size + chain.writable_size <= SMALL

    def reset(self) -> None:
        with self._changed:
            self._waiting.clear()
            self._generation += 1
            # The request at the disk must not touch the guest's buffers any more.
            while self._at_disk:
                self._changed.wait()

    def pause(self) -> None:
        with self._changed:
            self._hurries = True
            self._changed.notify_all()
            while self._busy or self._waiting:
                self._changed.wait()
            self._hurries = False

    def exchanged(self) -> None:
        """Tell the driver that the disk is another one, perhaps of another size."""
        with self.lock:
            if self.accepted:
                self.transport.interrupt_config()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._worker is not None:
            self._worker.join()

    # ---- the worker -------------------------------------------------------

    def _work(self) -> None:
        try:
            serve_as("io")
            self._serve_all()
        finally:
            # Whatever ended it, nobody waits for requests that nobody carries out.
            with self._changed:
                self._busy = False
                self._waiting.clear()
                self._changed.notify_all()

    def _serve_all(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._await_request()
                if self._closed:
                    return
                chain = self._waiting.popleft()
                if self._throttle is not None:
                    self._throttle.take(chain.readable_size + chain.writable_size)
                generation = self._generation
                self._busy = self._at_disk = True
            self._serve(chain, generation)

    def _await_request(self) -> None:
        """Wait for a request that may be carried out, or the end; `_changed` is held."""
        while not self._closed:
            if not self._waiting:
                self._changed.wait()
                continue
            throttle = self._throttle
            pause = 0.0 if throttle is None or self._hurries else throttle.wait()
            if not pause:
                return
            self._changed.wait(pause)

    def _serve(self, chain: Chain, generation: int) -> None:
        try:
            outcome = self._attempt(chain)
        finally:
            with self._changed:
                self._at_disk = False
                self._changed.notify_all()
        with self.lock:
            if generation == self._generation:
                self._finish(chain, *outcome)

    def _attempt(self, chain: Chain) -> tuple[int, str | None]:
        """Carry one request out; return its status, and what the driver did wrong, if it did."""
        try:
            return self._execute(chain), None
        except QueueError as fault:
            return IO_ERROR, fault.message
        except Exception as fault:  # whatever befalls the disk, the guest gets an answer
            self.errors += 1
            self.last_error = fault
            return IO_ERROR, None

    def _finish(self, chain: Chain, status: int, failure: str | None) -> None:
        """Answer one request; the device's lock is held."""
        if failure is not None:
            self.transport.fail(failure)
            return
        queue = self.queues[0]
        chain.writable[-1][-1] = status
        # The status is the last byte, so that everything before it counts as written.
        queue.push(chain, chain.writable_size)
        self.complete(queue)

    def _execute(self, chain: Chain) -> int:
        """Carry one request out; return its status."""
        if not chain.writable or not len(chain.writable[-1]):
            raise QueueError("a block request without room for its status")
        header, data_out = split(chain.readable, HEADER.size)
        if len(header) < HEADER.size:
            raise QueueError("a block request without its header")
        kind, _, sector = HEADER.unpack(header)
        data_in = [*chain.writable[:-1], chain.writable[-1][:-1]]
        offset = sector * SECTOR
        if kind == READ:
            if not self._fits(offset, sum(map(len, data_in))):
                return IO_ERROR
            self._disk.read_into(offset, data_in)
            return OK
        if kind == WRITE:
            if self._disk.read_only or not self._fits(offset, sum(map(len, data_out))):
                return IO_ERROR
            self._disk.write(offset, data_out)
            return OK
        if kind == FLUSH:
            self._disk.flush()
            return OK
        if kind == GET_ID:
            fill(data_in, self._identity)
            return OK
        if kind in (DISCARD, WRITE_ZEROES) and not self._disk.read_only:
            return self._ranges(kind, data_out)
        return UNSUPPORTED

    def _fits(self, offset: int, length: int) -> bool:
        return length % SECTOR == 0 and offset + length <= self._disk.size

    def _ranges(self, kind: int, data: Buffers) -> int:
        table, rest = split(data, MAX_RANGES * RANGE.size)
        if rest or len(table) % RANGE.size or not table:
            return UNSUPPORTED
        ranges = list(RANGE.iter_unpack(table))
        for sector, count, flags in ranges:
            # Section 5.2.6.2: unknown flags, and unmap for discard, are not supported.
            if flags & ~UNMAP or (kind == DISCARD and flags):
                return UNSUPPORTED
            if count > MAX_RANGE_SECTORS or not self._fits(sector * SECTOR, count * SECTOR):
                return IO_ERROR
        for sector, count, flags in ranges:
            if kind == DISCARD:
                self._disk.discard(sector * SECTOR, count * SECTOR)
            else:
                unmap = bool(flags & UNMAP)
                self._disk.write_zeroes(sector * SECTOR, count * SECTOR, unmap=unmap)
        return OK

    # ---- state ------------------------------------------------------------

    def save(self) -> BlockState:
        return BlockState(self._disk.size)

    def restore(self, state: BlockState) -> None:
        if state.size != self._disk.size:
            raise StateError(
                "virtio block: the disk has another size",
                expected=state.size,
                seen=self._disk.size,
            )
