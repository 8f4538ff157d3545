"""Split virtqueues, the device's side (virtio 1.2 section 2.7).

Every index, length and address in them comes from the guest. Each is checked;
what makes no sense raises `QueueError`, and the transport then tells the
driver that the device needs a reset.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ringzero.core.memory import GuestMemory
from ringzero.errors import DeviceError, GuestAddressError, StateError
from ringzero.records import record

if TYPE_CHECKING:
    from ringzero.core.transmit import TransmitDrain

MAX_QUEUE_SIZE = 32768
# Section 2.7.4: all descriptors of a chain together are at most 2^32 bytes.
MAX_CHAIN_BYTES = 1 << 32
DESCRIPTOR = struct.Struct("<QIHH")
_TWO_DESCRIPTORS = struct.Struct("<QIHHQIHH")
USED_ELEMENT = struct.Struct("<II")
NEXT, WRITE, INDIRECT = 1, 2, 4
NO_INTERRUPT, NO_NOTIFY = 1, 1

# Linux's pages, as which the data of files come.
_PAGE_MASK = 4095

_barrier = threading.Lock()


def fence() -> None:
    """Order our stores before our later loads, as other CPUs see them.

    Taking a lock is an atomic read-modify-write, a full barrier on every host.
    """
    with _barrier:
        pass


class QueueError(DeviceError):
    """The guest broke the rules of the virtqueue."""

    kind = "virtqueue"


class Chain:
    """One request: buffers the device reads, then buffers it writes.

    `readable` and `writable` are views of guest memory itself. `addresses`
    holds the guest-physical address of each writable buffer.
    """

    __slots__ = ("addresses", "head", "readable", "writable")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.addresses: list[int] = []

    @property
    def readable_size(self) -> int:
        """Number of bytes that the device may read."""
        return sum(map(len, self.readable))

    @property
    def writable_size(self) -> int:
        """Number of bytes that the device may write."""
        return sum(map(len, self.writable))

    def gather(self, limit: int) -> bytes:
        """Return the readable bytes in one piece, at most `limit` of them."""
        views = self.readable
        if len(views) == 1:
            return bytes(views[0][:limit])
        parts = []
        for view in views:
            parts.append(bytes(view[:limit]))
            limit -= len(parts[-1])
            if limit <= 0:
                break
        return b"".join(parts)

    def split(self, count: int) -> tuple[bytes, list[bytes | memoryview]]:
        """Return a copy of the first readable `count` bytes, and views of the rest."""
        views = self.readable
        if len(views) == 1 and len(views[0]) <= count:
            return bytes(views[0]), []
        head, rest = b"", list[bytes | memoryview]()
        for view in views:
            missing = count - len(head)
            if missing > 0:
                head += view[:missing]
            if len(view) > missing:
                rest.append(view[max(0, missing) :])
        return head, rest

    def scatter(self, data: bytes | bytearray | memoryview) -> int:
        """Copy `data` into the writable buffers; return how much found room."""
        done = 0
        for view in self.writable:
            piece = data[done : done + len(view)]
            view[: len(piece)] = piece
            done += len(piece)
            if done >= len(data):
                break
        return done


class Room:
    """Buffers of one or more requests, taken together to be written to: `size` bytes at least.

    `used` has each request's head and how many of its bytes are meant; `runs` are the stretches
    of guest memory (address, bytes), which hold as many as were asked for.
    """

    __slots__ = ("runs", "size", "used")

    def __init__(self) -> None:
        self.used: list[tuple[int, int]] = []
        self.runs: list[tuple[int, int]] = []
        self.size = 0

    def add(self, address: int, count: int) -> None:
        """Add a buffer; drivers take them from one piece of memory, one behind the other."""
        runs = self.runs
        if runs and runs[-1][0] + runs[-1][1] == address:
            runs[-1] = (runs[-1][0], runs[-1][1] + count)
        elif count:
            runs.append((address, count))


@record
class QueueState:
    """What the driver set up, and how far the device got."""

    size: int
    ready: bool
    descriptors: int
    available: int
    used: int
    next_available: int
    next_used: int
    notified_used: int


# The areas of a queue that is not in place.
_NOWHERE = memoryview(b"")


class Virtqueue:
    """One queue. The transport sets the public fields, then calls `enable`.

    The device calls `pop` and `push` of a queue that is `ready`; one thread at a time, which
    the device's lock sees to. One that was restored looks at its areas once it is asked whether it
    is: copies of a machine have queues by the dozen, most of which they never use.
    """

    def __init__(self, memory: GuestMemory, max_size: int) -> None:
        self._memory = memory
        self.max_size = max_size
        # What drains the queue while it is lent, if an engine does that.
        self.drain: TransmitDrain | None = None
        self.reset()

    def reset(self) -> None:
        """Go back to the state after power-on."""
        self.reclaim()
        self.size = self.max_size
        self._ready = self._restored = False
        self.event_idx = False
        # Guest-physical addresses of the three areas (section 2.7).
        self.descriptors = self.available = self.used = 0
        self._next_available = self._next_used = self._notified_used = 0
        self._table = self._used_bytes = _NOWHERE
        self._available = self._used = _NOWHERE

    @property
    def ready(self) -> bool:
        """Whether the driver has put the queue in place."""
        if self._restored:
            self.enable(self.event_idx)
        return self._ready

    def enable(self, event_idx: bool) -> None:
        """Start to use the three areas; raises QueueError when they are not in RAM."""
        self._check()
        size = self.size
        self._table = self._memory.view(self.descriptors, 16 * size)
        self._available = self._memory.view(self.available, 6 + 2 * size).cast("H")
        self._used_bytes = self._memory.view(self.used, 6 + 8 * size)
        self._used = self._used_bytes.cast("H")
        self.event_idx = event_idx
        self._ready, self._restored = True, False

    def _check(self) -> None:
        """Raise QueueError unless the three areas are possible, and in RAM."""
        size = self.size
        if size == 0 or size > self.max_size or size & (size - 1):
            raise QueueError(f"a virtqueue of {size} entries is not possible")
        if self.descriptors & 15 or self.available & 1 or self.used & 3:
            raise QueueError("a virtqueue area is not aligned")
        locate = self._memory.offset_of
        try:
            locate(self.descriptors, 16 * size)
            locate(self.available, 6 + 2 * size)
            locate(self.used, 6 + 8 * size)
        except GuestAddressError as fault:
            raise QueueError("a virtqueue area is not in RAM", **fault.context) from fault

    def disable(self) -> None:
        """Stop to use the areas."""
        self.reclaim()
        self._ready = self._restored = False

    # ---- an engine that drains it ------------------------------------------

    def lend(self) -> None:
        """Let the engine serve the driver's notifications until `reclaim`."""
        if self.drain is not None and self.ready:
            self.drain.lend(
                (self.descriptors, self.available, self.used),
                self.size,
                self.event_idx,
                (self._next_available, self._next_used),
            )

    def reclaim(self) -> None:
        """Have the queue for the device again, wherever the engine has got to."""
        if self.drain is not None and (indices := self.drain.reclaim()) is not None:
            self._next_available, self._next_used = indices

    # ---- requests ---------------------------------------------------------

    def pop(self) -> Chain | None:
        """Return the next request, or None when there is none; raises QueueError."""
        position = self._next_available
        waiting = (self._available[1] - position) & 0xFFFF
        if not waiting:
            return None
        size = self.size
        if waiting > size:
            raise QueueError("the available index ran away", waiting=waiting, size=size)
        head = self._available[2 + (position & (size - 1))]
        self._next_available = (position + 1) & 0xFFFF
        return self._walk(head)

    def requests(self) -> Iterator[Chain]:
        """Yield requests until none is left; the driver then notifies of the next one."""
        while True:
            self.suppress()
            while (chain := self.pop()) is not None:
                yield chain
            if not self.rearm():
                return

    def unpop(self, count: int = 1) -> None:
        """Give the last popped requests back, to be popped again later."""
        self._next_available = (self._next_available - count) & 0xFFFF

    def chain(self, head: int) -> Chain:
        """Return the request that begins at `head`, which was popped before; raises QueueError."""
        return self._walk(head)

    def _walk(self, head: int) -> Chain:
        chain = Chain(head)
        table, entries = self._table, self.size
        if head < entries:
            address, length, flags, _ = DESCRIPTOR.unpack_from(table, 16 * head)
            if flags == WRITE or not flags:
                # One buffer: what a network's queues are full of.
                buffer = self._view(address, length)
                if flags:
                    chain.writable.append(buffer)
                    chain.addresses.append(address)
                else:
                    chain.readable.append(buffer)
                return chain
            if flags == INDIRECT and length == _TWO_DESCRIPTORS.size:
                # A question and room for its answer: what a file server's queue is full of.
                address, length, flags, following, place, size, kind, _ = (
                    _TWO_DESCRIPTORS.unpack_from(self._view(address, length))
                )
                if flags == NEXT and following == 1 and kind == WRITE:
                    chain.readable.append(self._view(address, length))
                    chain.writable.append(self._view(place, size))
                    chain.addresses.append(place)
                    return chain
        index = head
        left = entries
        indirect = False
        total = 0
        # A run of buffers: whole pages side by side, of which a file's are many, are one.
        start = end = kind = -1
        while True:
            if index >= entries:
                raise QueueError("a descriptor index is out of range", index=index, size=entries)
            if left == 0:
                raise QueueError("descriptors form a loop", head=head)
            left -= 1
            address, length, flags, following = DESCRIPTOR.unpack_from(table, 16 * index)
            if flags & INDIRECT:
                if indirect or flags & NEXT or length == 0 or length & 15:
                    raise QueueError("an indirect descriptor breaks the rules", flags=flags)
                indirect = True
                table, entries = self._view(address, length), length >> 4
                index, left = 0, min(entries, MAX_QUEUE_SIZE)
                continue
            total += length
            if address == end and flags & WRITE == kind and not (length | end - start) & _PAGE_MASK:
                end += length
            else:
                if kind >= 0:
                    self._add(chain, start, end - start, kind)
                start, end, kind = address, address + length, flags & WRITE
            if not flags & NEXT:
                break
            index = following
        if kind >= 0:
            self._add(chain, start, end - start, kind)
        if total > MAX_CHAIN_BYTES:
            raise QueueError("a request of more than 4 GiB", head=head)
        return chain

    def _add(self, chain: Chain, address: int, length: int, kind: int) -> None:
        """Add a buffer, which the device writes (`kind` WRITE) or reads."""
        buffer = self._view(address, length)
        if kind:
            chain.writable.append(buffer)
            chain.addresses.append(address)
        elif chain.writable:
            raise QueueError("a readable buffer follows a writable one", head=chain.head)
        else:
            chain.readable.append(buffer)

    def _view(self, address: int, length: int) -> memoryview:
        try:
            return self._memory.view(address, length)
        except GuestAddressError as fault:
            raise QueueError("a buffer is not in RAM", **fault.context) from fault

    def discard(self, address: int, length: int) -> int:
        """Give guest memory that the driver does not use back to the host; return how much.

        Raises QueueError.
        """
        try:
            return self._memory.discard(address, length)
        except GuestAddressError as fault:
            raise QueueError("pages that are given back are not in RAM", **fault.context) from fault

    def push(self, chain: Chain, written: int) -> None:
        """Give `chain` back, its first `written` writable bytes filled in."""
        if len(chain.writable) == 1:
            if written > 0:
                count = min(written, len(chain.writable[0]))
                self._memory.mark_written(chain.addresses[0], count)
            self.give_back(((chain.head, written),))
        else:
            self.push_all(((chain, written),))

    def push_all(self, pushed: Iterable[tuple[Chain, int]]) -> None:
        """Give several chains back, which the driver sees at once (as `push`)."""
        mark = self._memory.mark_written
        heads: list[tuple[int, int]] = []
        # Drivers take buffers from one piece of memory: those side by side are marked as one.
        start = end = 0
        for chain, written in pushed:
            left = written
            for address, buffer in zip(chain.addresses, chain.writable, strict=True):
                if left <= 0:
                    break
                if address != end:
                    if end > start:
                        mark(start, end - start)
                    start = address
                end = address + min(left, len(buffer))
                left -= len(buffer)
            heads.append((chain.head, written))
        if end > start:
            mark(start, end - start)
        self.give_back(heads)

    # ---- many at once -----------------------------------------------------

    def put(self, data: bytes) -> bool:
        """Write `data` into the next request, if that is one buffer with room, and give it back.

        False, and nothing is done, where it wants more than that. Raises QueueError.
        """
        position, entries, size = self._next_available, self.size, len(data)
        head = self._available[2 + (position & (entries - 1))]
        if self._available[1] == position or head >= entries:
            return False
        address, length, flags, _ = DESCRIPTOR.unpack_from(self._table, 16 * head)
        if flags != WRITE or length < size:
            return False
        try:
            self._memory.view(address, length)[:size] = data
        except GuestAddressError as fault:
            raise QueueError("a buffer is not in RAM", **fault.context) from fault
        self._memory.mark_written(address, size)
        self._next_available = position + 1 & 0xFFFF
        self.give_back(((head, size),))
        return True

    def reserve(self, needed: int, most: int) -> Room | None:
        """Take requests that hold `needed` bytes together, at most `most` of them.

        None where not as many wait yet, and then none is taken. Where `most` of them are too
        small, the room is as large as they are. Raises QueueError.
        """
        room = Room()
        table, available, entries = self._table, self._available, self.size
        position = first = self._next_available
        waiting = (available[1] - position) & 0xFFFF
        if waiting > entries:
            raise QueueError("the available index ran away", waiting=waiting, size=entries)
        is_ram, left = self._memory.is_ram, needed
        while left > 0 and len(room.used) < most:
            if not waiting:
                self._next_available = first
                return None
            waiting -= 1
            head = available[2 + (position & (entries - 1))]
            position = position + 1 & 0xFFFF
            if head < entries:
                address, length, flags, _ = DESCRIPTOR.unpack_from(table, 16 * head)
                if flags == WRITE:
                    if not is_ram(address, length):
                        raise QueueError("a buffer is not in RAM", address=address, count=length)
                    taken = min(length, left)
                    room.add(address, taken)
                    room.used.append((head, taken))
                    room.size += length
                    left -= taken
                    continue
            chain = self._walk(head)
            taken = 0
            for address, view in zip(chain.addresses, chain.writable, strict=True):
                count = min(len(view), left - taken)
                room.add(address, count)
                room.size += len(view)
                taken += count
            room.used.append((head, taken))
            left -= taken
        self._next_available = position
        return room

    def fill(self, room: Room, pieces: Sequence[bytes | memoryview]) -> None:
        """Copy `pieces` into a room, which they fill, and give its requests back."""
        memory = self._memory
        if len(room.runs) == len(pieces) == 1:
            address, count = room.runs[0]
            memory.view(address, count)[:] = pieces[0]
            memory.mark_written(address, count)
        else:
            source = iter(pieces)
            piece, at = memoryview(next(source)), 0
            for address, count in room.runs:
                view, place = memory.view(address, count), 0
                while place < count:
                    step = min(count - place, len(piece) - at)
                    view[place : place + step] = piece[at : at + step]
                    place, at = place + step, at + step
                    if at == len(piece):
                        piece, at = memoryview(next(source, b"")), 0
                memory.mark_written(address, count)
        self.give_back(room.used)

    def give_back(self, used: Iterable[tuple[int, int]]) -> None:
        """Give requests back by their heads, with how many bytes were written to each."""
        mask, ring, position = self.size - 1, self._used_bytes, self._next_used
        for head, written in used:
            USED_ELEMENT.pack_into(ring, 4 + 8 * (position & mask), head, written)
            position += 1
        self._next_used = position & 0xFFFF
        self._used[1] = self._next_used
        self._memory.mark_written(self.used, len(ring))

    # ---- notification -----------------------------------------------------

    def should_interrupt(self) -> bool:
        """Return whether the driver wants to hear of what was pushed since the last call."""
        fence()
        before, now = self._notified_used, self._next_used
        self._notified_used = now
        if before == now:
            return False
        if self.event_idx:
            event = self._available[2 + self.size]
            return (now - event - 1) & 0xFFFF < (now - before) & 0xFFFF
        return not self._available[0] & NO_INTERRUPT

    def suppress(self) -> None:
        """Ask the driver not to notify while the device is looking anyway."""
        if not self.event_idx:
            self._used[0] = NO_NOTIFY

    def rearm(self, more: int = 0) -> bool:
        """Ask for a notification of the next request; True when one has come already.

        With `more` the driver need not notify before that many others have come, too (a
        driver without VIRTIO_F_EVENT_IDX does at the next one).
        """
        self._ask(self._next_available + more)
        return self._available[1] != self._next_available

    def _ask(self, position: int) -> None:
        """Ask for a notification of the request at `position` of all that were ever offered."""
        used = self._used
        place, value = (2 + 4 * self.size, position & 0xFFFF) if self.event_idx else (0, 0)
        # Of a copied machine's memory, what is written to takes a page of its own.
        if used[place] != value:
            used[place] = value
        fence()

    def is_at_rest(self) -> bool:
        """Whether neither side owes the other anything.

        Nobody else drains the queue, nothing is offered, nothing given back that the driver was not
        told of, and it notifies of the next request.
        """
        if not self._ready:
            return True
        if self.drain is not None or self._notified_used != self._next_used:
            return False
        read = self._memory.read_int
        asked = self._next_available if self.event_idx else 0
        where = self.used + (4 + 8 * self.size if self.event_idx else 0)
        return read(self.available + 2, 2) == self._next_available and read(where, 2) == asked

    @property
    def waiting(self) -> int:
        """How many requests the driver has offered that were not popped, at most `size`."""
        return min((self._available[1] - self._next_available) & 0xFFFF, self.size)

    @property
    def offered(self) -> int:
        """How many requests the driver has ever offered, modulo 2^16."""
        return self._available[1]

    def request_notice(self) -> None:
        """Ask for a notification of the next request, even while others wait."""
        if self.ready:
            self._ask(self._available[1])

    # ---- state ------------------------------------------------------------

    def save(self) -> QueueState:
        self.reclaim()
        return QueueState(
            self.size,
            self._ready,
            self.descriptors,
            self.available,
            self.used,
            self._next_available,
            self._next_used,
            self._notified_used,
        )

    def restore(self, state: QueueState, event_idx: bool) -> None:
        self.reset()
        self.size = state.size
        self.descriptors = state.descriptors
        self.available = state.available
        self.used = state.used
        if state.ready:
            try:
                self._check()
            except QueueError as fault:
                raise StateError(f"virtqueue: {fault.message}", **fault.context) from fault
            self.event_idx = event_idx
            self._ready = self._restored = True
        self._next_available = state.next_available & 0xFFFF
        self._next_used = state.next_used & 0xFFFF
        self._notified_used = state.notified_used & 0xFFFF
