"""A machine's transmit queues that native code drains (`isa.x86.transmit`), Python's side."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from ringzero.core.memory import GuestMemory
from ringzero.engine.soft.x86.native import NativeEngine
from ringzero.isa.x86.transmit import BUFFER, LENT, QUEUES, TransmitQueue, TransmitTable
from ringzero.native.view import view_of


class SharedQueue:
    """Implements `ringzero.core.transmit.TransmitDrain` over the TransmitQueue at a host address.

    `table` keeps the memory.
    """

    def __init__(self, engine: NativeEngine, address: int, table: TransmitQueues) -> None:
        self._address = address
        self._engine = engine
        self._table = table
        self._queue = view_of(TransmitQueue, address)
        self._buffer = address + TransmitQueue.offset_of("buffer")
        self._lent = False

    def lend(
        self, areas: tuple[int, int, int], size: int, event_idx: bool, indices: tuple[int, int]
    ) -> None:
        queue, place = self._queue, self._table.place
        queue.descriptors, queue.available, queue.used = map(place, areas)
        queue.size = size
        queue.event_idx = event_idx
        queue.next_available, queue.next_used = indices
        self._lent = True
        # Last: from now on it is native code's.
        queue.state = LENT

    def reclaim(self) -> tuple[int, int] | None:
        if not self._lent:
            return None
        self._engine.reclaim_queue(self._address)
        self._lent = False
        queue = self._queue
        return queue.next_available, queue.next_used

    def take(self) -> bytes:
        queue = self._queue
        start, end = queue.taken, queue.written
        count = (end - start) & 0xFFFF_FFFF
        if not count:
            return b""
        at = start % BUFFER
        first = min(count, BUFFER - at)
        data = ctypes.string_at(self._buffer + at, first)
        if first < count:
            data += ctypes.string_at(self._buffer, count - first)
        queue.taken = end
        return data


class TransmitQueues:
    """A view of the TransmitTable at a host address, which is all zeros at first.

    `owner` is the mapping that it lies in, kept as long as this.
    """

    def __init__(
        self, engine: NativeEngine, memory: GuestMemory, address: int, owner: object
    ) -> None:
        self.address = address
        self._engine = engine
        self._memory = memory
        self._owner = owner
        self._view = view_of(TransmitTable, address)
        # Read at every exit, so not through the view.
        self._waiting = ctypes.c_uint32.from_address(address + TransmitTable.offset_of("waiting"))
        self._ready: list[Callable[[], None]] = []

    def add(self, address: int, number: int, ready: Callable[[], None]) -> SharedQueue | None:
        """Drain a queue; None when there is no room for more."""
        index = len(self._ready)
        if index == QUEUES:
            return None
        queue = self._view.queues[index]
        queue.notify, queue.number = address, number
        self._ready.append(ready)
        self._view.count = index + 1
        return SharedQueue(self._engine, queue.address, self)

    def place(self, gpa: int) -> int:
        """Return the host address of RAM at a guest-physical address."""
        return self._memory.host.address + self._memory.offset_of(gpa, 1)

    def deliver(self) -> None:
        """Have the devices pass on what was copied before this moment."""
        if self._waiting.value:
            # First: what comes from now on is told again.
            self._waiting.value = self._view.slices = self._view.enough = 0
            for ready in self._ready:
                ready()
