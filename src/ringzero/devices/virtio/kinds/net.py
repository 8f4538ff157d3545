"""virtio network device (virtio 1.2 section 5.1): pairs of queues, offloads, a control queue.

Frames cross the device with checksums open and uncut, up to 64 KiB at once
(`ringzero.core.frames`). A `NetBackend` fetches the guest's frames and delivers
others, on a thread of its own. While it fetches, the guest is not asked to
notify. A network may lose frames, and so does this device: those that make no
sense, and those on their way while the machine is copied or restored.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ringzero.core.frames import (
    ETHERNET_HEADER,
    GSO_ECN,
    GSO_NONE,
    GSO_TCP4,
    GSO_TCP6,
    GSO_UDP,
    GSO_UDP_L4,
    HEADERS_SIZE,
    LARGEST_FRAME,
    Frame,
    plain,
)
from ringzero.devices.virtio.device import VIRTIO_DEVICES, VirtioDevice
from ringzero.devices.virtio.queue import Chain, QueueError, Virtqueue
from ringzero.errors import StateError
from ringzero.records import record

if TYPE_CHECKING:
    from ringzero.devices.virtio.steering import Steering

# Section 5.1.2: of each pair, one behind the other. The control queue follows those that the
# driver has taken.
RECEIVE, TRANSMIT = 0, 1
QUEUE_SIZE, CONTROL_SIZE = 256, 64
# Section 5.1.3.
CSUM, GUEST_CSUM, FEATURE_MTU, FEATURE_MAC = 1 << 0, 1 << 1, 1 << 3, 1 << 5
GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO = 1 << 7, 1 << 8, 1 << 9, 1 << 10
HOST_TSO4, HOST_TSO6, HOST_ECN, HOST_UFO = 1 << 11, 1 << 12, 1 << 13, 1 << 14
MRG_RXBUF, FEATURE_STATUS, CTRL_VQ, CTRL_RX = 1 << 15, 1 << 16, 1 << 17, 1 << 18
GUEST_ANNOUNCE, FEATURE_MQ, CTRL_MAC_ADDR = 1 << 21, 1 << 22, 1 << 23
GUEST_USO4, GUEST_USO6, HOST_USO = 1 << 54, 1 << 55, 1 << 56
FEATURES = (
    *(CSUM, GUEST_CSUM, FEATURE_MTU, FEATURE_MAC, FEATURE_STATUS),
    *(GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO, HOST_TSO4, HOST_TSO6, HOST_ECN, HOST_UFO),
    *(MRG_RXBUF, CTRL_VQ, CTRL_RX, GUEST_ANNOUNCE, CTRL_MAC_ADDR),
    *(GUEST_USO4, GUEST_USO6, HOST_USO),
)
# What the driver must have taken before it is given, or gives, a frame of such a kind.
GUEST_GSO = {
    GSO_TCP4: GUEST_TSO4,
    GSO_TCP6: GUEST_TSO6,
    GSO_UDP: GUEST_UFO,
    GSO_TCP4 | GSO_ECN: GUEST_TSO4 | GUEST_ECN,
    GSO_TCP6 | GSO_ECN: GUEST_TSO6 | GUEST_ECN,
    GSO_UDP_L4: GUEST_USO4 | GUEST_USO6,
}
HOST_GSO = {
    GSO_TCP4: HOST_TSO4,
    GSO_TCP6: HOST_TSO6,
    GSO_UDP: HOST_UFO,
    GSO_TCP4 | GSO_ECN: HOST_TSO4 | HOST_ECN,
    GSO_TCP6 | GSO_ECN: HOST_TSO6 | HOST_ECN,
    GSO_UDP_L4: HOST_USO,
}
LINK_UP, ANNOUNCE = 1, 2
# Section 5.1.4: MAC, status, pairs of queues (there where one is offered, too), MTU.
CONFIG = struct.Struct("<6sHHH")
# Section 5.1.6: flags, GSO type, header length, GSO size, checksum start and offset, buffers.
HEADER = struct.Struct("<BBHHHHH")
NEEDS_CSUM = 1
# Section 5.1.6.5: classes of the control queue, and its answers.
CLASS_RX, CLASS_MAC, CLASS_ANNOUNCE, CLASS_MQ = 0, 1, 3, 4
MAC_TABLE_SET, MAC_ADDR_SET, VQ_PAIRS_SET = 0, 1, 0
CONTROL_OK, CONTROL_ERROR = b"\0", b"\1"
# The most that a driver may write to the control queue: two tables of addresses.
CONTROL_LIMIT = 8192
# Bytes of a frame that is copied whole, and that nobody waits for to leave.
_SMALL = 2048
# A VLAN tag besides the Ethernet header.
VLAN_TAG = 4
# Frames for the guest that wait for its buffers before `deliver` takes no more.
BACKLOG = 256
# Bytes that are fetched before their buffers are given back: TCP of Linux keeps two large
# segments on their way (tcp_limit_output_bytes), and stands still until they come back.
BATCH_BYTES = 65536


class NetBackend(Protocol):
    """Where the guest's frames go. The device calls, holding its lock; it may not wait."""

    def wake(self) -> None:
        """Hear that `fetch` has frames, or `deliver` takes them again."""
        ...

    def connections(self) -> tuple[bytes, ...]:
        """Return what the state keeps for a copy of the machine (`NetState.connections`)."""
        ...


@record
class NetState:
    """The device's address, whether the guest knows of the link, and owes an announcement.

    `connections` are those that end in the machine's network, which a copy's does not have.
    `pairs` are the pairs of queues that the driver uses.
    """

    mac: bytes
    link: bool
    announce: bool = False
    connections: tuple[bytes, ...] = ()
    pairs: int = 1


@VIRTIO_DEVICES.register("net")
class Net(VirtioDevice[NetState]):
    """A network interface with the address `mac`, 6 bytes. Packets hold up to `mtu` bytes.

    The driver may use up to `pairs` pairs of queues. One thread fetches from all of them.
    `received` and `sent` count the guest's frames, `received_bytes` and `sent_bytes` what is
    in them, `dropped` those that found no room or made no sense.
    """

    device_id = 1
    state_type = NetState

    def __init__(self, mac: bytes, backend: NetBackend, mtu: int = 1500, pairs: int = 1) -> None:
        super().__init__(
            queue_sizes=(*(QUEUE_SIZE,) * 2 * pairs, CONTROL_SIZE),
            features=sum(FEATURES) | (FEATURE_MQ if pairs > 1 else 0),
        )
        # There was no control queue at first.
        self.least_queues = 2
        self._most_pairs = pairs
        # What the driver uses of them; where that is several, which flow goes by which.
        self._pairs = 1
        self._steering: Steering | None = None
        self.mac = mac
        self._backend = backend
        self._mtu = mtu
        self._largest = mtu + ETHERNET_HEADER + VLAN_TAG
        # What waits for the guest's buffers, for each pair.
        self._backlogs: list[deque[Frame]] = [deque() for _ in range(pairs)]
        self._pressed = False
        # Whether there is a link, and whether the guest was told so; whether it shall tell
        # its neighbours of itself.
        self._wire = self._link = self._announce = False
        # Of the state that was restored.
        self.connections: tuple[bytes, ...] = ()
        self._paused = False
        # Frames that the backend looks at outside the lock: whose they are, and whether any are.
        self._changed = threading.Condition(self.lock)
        self._generation = 0
        self._fetching = False
        self._drained = True
        # The pair whose transmit queue was looked at last, and that queue.
        self._turn = 0
        self._source: Virtqueue
        # The transmit queue with a frame that has left, for which the driver was not interrupted.
        self._unsettled: Virtqueue | None = None
        self.received = self.sent = self.dropped = 0
        self.received_bytes = self.sent_bytes = 0

    # ---- the backend's calls, from any thread -----------------------------

    def fetch(self, handle: Callable[[Frame], None], limit: int, *, coalesce: bool = False) -> bool:
        """Call `handle` for up to about `limit` frames; False when `wake` will tell of more.

        With `coalesce` the driver hears of a single small frame's end with the next
        interrupt, or by `settle`: what waits for an answer needs one interrupt, not two.
        """
        with self.lock:
            batch, generation = self._collect(limit), self._generation
            self._fetching = bool(batch)
        while batch:
            limit -= len(batch)
            done = False
            try:
                for _, frame in batch:
                    if frame is not None:
                        handle(frame)
                done = True
            finally:
                with self.lock:
                    if generation == self._generation:
                        self._give_back(batch, coalesce)
                    batch, generation = self._collect(limit if done else 0), self._generation
                    self._fetching = bool(batch)
                    if not batch:
                        self._changed.notify_all()
        return not self._drained

    def _give_back(self, batch: list[tuple[Chain, Frame | None]], coalesce: bool) -> None:
        queue = self._source
        queue.give_back([(chain.head, 0) for chain, _ in batch])
        # Never for two: a socket may wait for its bytes to leave.
        alone = len(batch) == 1 and self._unsettled is None
        if coalesce and alone and batch[0][0].readable_size <= _SMALL:
            self._unsettled = queue
            return
        if self._unsettled is not queue:
            self.settle()
        self._unsettled = None
        self.complete(queue)

    def settle(self) -> None:
        """Interrupt the driver for the frame that has left, where that was put off."""
        with self.lock:
            queue, self._unsettled = self._unsettled, None
            if queue is not None:
                self.complete(queue)

    def _collect(self, limit: int) -> list[tuple[Chain, Frame | None]]:
        """Return what the guest wants sent, up to `limit` frames; the lock is held.

        Where it is nothing, and not for the limit, the driver is asked to notify of the next.
        """
        self._drained = limit > 0
        found: list[tuple[Chain, Frame | None]] = []
        if limit <= 0:
            return found
        for _ in range(self._pairs):
            # Each in turn, so that one that is never empty leaves something to the others.
            self._turn = (self._turn + 1) % self._pairs
            index = 2 * self._turn + TRANSMIT
            if not self.transport.serves(index):
                continue
            self._source = self.queues[index]
            try:
                self._pop_frames(self._source, found, limit)
            except QueueError as fault:
                self.transport.fail(f"queue {index}: {fault.message}")
            if found:
                break
        return found

    def deliver(self, frames: Sequence[Frame]) -> int:
        """Take frames for the guest, from the first on; if not all, `wake` will tell of room."""
        with self.lock:
            if not self.accepted:
                self.dropped += len(frames)
                return len(frames)
            count = min(len(frames), BACKLOG - self._waiting())
            checksums = self.accepted & GUEST_CSUM
            backlog = self._backlogs[0]
            for index in range(count):
                frame = frames[index]
                if self._steering is not None:
                    backlog = self._backlogs[self._steering.pair_of(frame.head)]
                ordinary = not frame.gso and (checksums or not frame.checksum_start)
                if ordinary and ETHERNET_HEADER <= frame.size <= self._largest:
                    backlog.append(frame)
                else:
                    backlog.extend(self._fitting(frame))
            self._pressed |= count < len(frames)
            for pair in range(self._pairs):
                if self._backlogs[pair]:
                    self.transport.serve(2 * pair + RECEIVE)
            return count

    def _waiting(self) -> int:
        """Return how many frames wait for the guest's buffers."""
        return sum(map(len, self._backlogs))

    def set_link(self, up: bool) -> None:
        """Say whether frames find their way; the guest hears of it."""
        with self.lock:
            self._wire = up
            if not self._paused:
                self._tell_status()

    def renew(self, mac: bytes) -> None:
        """Give a copied machine another address, before it runs; drivers read it at their start.

        A driver that can tells its neighbours of itself.
        """
        with self.lock:
            self.mac = mac
            self._announce = bool(self.accepted & GUEST_ANNOUNCE)

    # ---- the transport's calls --------------------------------------------

    def config(self) -> bytes:
        status = LINK_UP * self._link | ANNOUNCE * self._announce
        return CONFIG.pack(self.mac, status, self._most_pairs, self._mtu)

    def reset(self) -> None:
        self._unsettled = None
        self._forget()
        self._use(1)
        self._link, self._announce = self._wire, False

    def _forget(self) -> None:
        """Drop the frames that are on their way."""
        self._generation += 1
        for backlog in self._backlogs:
            backlog.clear()

    def _use(self, pairs: int) -> None:
        """Serve the first `pairs` pairs of queues from now on, and no others."""
        self._pairs, self._turn, self._steering = pairs, 0, None
        if pairs > 1:
            # Few machines want it.
            from ringzero.devices.virtio.steering import Steering

            self._steering = Steering()
        for backlog in self._backlogs[pairs:]:
            self._backlogs[0].extend(backlog)
            backlog.clear()

    def notify(self, index: int) -> None:
        if index == (2 * self._most_pairs if self.accepted & FEATURE_MQ else 2):
            self._control(self.queues[index])
        elif index >= 2 * self._pairs:
            # Of a pair that the driver has not said it uses.
            return
        elif index & 1 == RECEIVE:
            self._feed(self.queues[index], self._backlogs[index >> 1])
        elif not self._fetching:
            self._backend.wake()

    # ---- from the guest ---------------------------------------------------

    def _pop_frames(
        self, queue: Virtqueue, found: list[tuple[Chain, Frame | None]], limit: int
    ) -> None:
        queue.suppress()
        size = 0
        while size < BATCH_BYTES and len(found) < limit:
            chain = queue.pop()
            if chain is None:
                # Where frames were found, the queue is looked at again when they are dealt with.
                if found or not queue.rearm():
                    return
                continue
            frame = self._frame(chain)
            if frame is None:
                self.dropped += 1
            else:
                self.sent += 1
                self.sent_bytes += frame.size
                size += frame.size
                if self._steering is not None:
                    self._steering.learn(frame.head, self._turn)
            found.append((chain, frame))
        self._drained = False

    def _frame(self, chain: Chain) -> Frame | None:
        """Return the frame in a chain, its headers copied; None where it is none."""
        size = chain.readable_size
        if not HEADER.size + ETHERNET_HEADER <= size <= HEADER.size + LARGEST_FRAME:
            return None
        head, rest = chain.split(size if size <= _SMALL else HEADERS_SIZE)
        flags, gso, _, gso_size, start, offset, _ = HEADER.unpack_from(head)
        head = head[HEADER.size :]
        if not flags & NEEDS_CSUM:
            start = offset = 0
        elif not ETHERNET_HEADER <= start <= len(head) - offset - 2 or not self.accepted & CSUM:
            return None
        if gso == GSO_NONE:
            if size > HEADER.size + self._largest:
                return None
        elif not start or not gso_size or not self._has(HOST_GSO.get(gso)):
            return None
        return Frame(head, rest, start, offset, gso, gso_size)

    def _has(self, feature: int | None) -> bool:
        return feature is not None and self.accepted & feature == feature

    # ---- to the guest -----------------------------------------------------

    def _fitting(self, frame: Frame) -> list[Frame]:
        """Return `frame` in the way that the driver takes it; nothing where it cannot be."""
        if frame.gso:
            fits = self._has(GUEST_GSO.get(frame.gso)) and frame.size <= LARGEST_FRAME
        else:
            fits = ETHERNET_HEADER <= frame.size <= self._largest
            if not fits:
                self.dropped += 1
                return []
        if fits and (not frame.checksum_start or self.accepted & GUEST_CSUM):
            return [frame]
        return [Frame(data) for data in plain(frame) if len(data) <= self._largest]

    def _feed(self, queue: Virtqueue, backlog: deque[Frame]) -> None:
        while backlog and self._place(queue, backlog[0]):
            backlog.popleft()
        if self._unsettled is not None:
            self.settle()
        self.complete(queue)
        if self._pressed and self._waiting() <= BACKLOG // 2:
            self._pressed = False
            self._backend.wake()

    def _place(self, queue: Virtqueue, frame: Frame) -> bool:
        """Put one frame into the guest's buffers, or drop it; False where it has too few."""
        needed = HEADER.size + frame.size
        if not frame.rest:
            header = HEADER.pack(*self._fields(frame), 1)
            if queue.put(header + frame.head):
                self.received += 1
                self.received_bytes += frame.size
                return True
        most = queue.size if self.accepted & MRG_RXBUF else 1
        room = queue.reserve(needed, most)
        if room is None:
            offered = queue.offered
            queue.request_notice()
            if offered == queue.offered:
                if queue.waiting < queue.size:
                    return False
                # Even all of its buffers are too few.
                self.dropped += 1
                return True
            room = queue.reserve(needed, most)
            if room is None:
                return False
        if room.size < needed:
            # The driver knows the MTU; it gets the buffers back empty.
            self.dropped += 1
            queue.give_back([(head, 0) for head, _ in room.used])
            return True
        header = HEADER.pack(*self._fields(frame), len(room.used))
        queue.fill(room, (header + frame.head, *frame.rest))
        self.received += 1
        self.received_bytes += frame.size
        return True

    def _fields(self, frame: Frame) -> tuple[int, int, int, int, int, int]:
        """Return what the header has of a frame: all but the number of buffers."""
        if not frame.checksum_start:
            return 0, 0, 0, 0, 0, 0
        # Section 5.1.6.4.1: the header's length is a hint; Linux takes none for 0.
        length = len(frame.head) if frame.gso else 0
        start, offset = frame.checksum_start, frame.checksum_offset
        return NEEDS_CSUM, frame.gso, length, frame.gso_size, start, offset

    # ---- control ----------------------------------------------------------

    def _control(self, queue: Virtqueue) -> None:
        for chain in queue.requests():
            command = chain.gather(CONTROL_LIMIT)
            answer = CONTROL_OK if self._obey(command) else CONTROL_ERROR
            queue.push(chain, chain.scatter(answer))
        self.complete(queue)

    def _obey(self, command: bytes) -> bool:
        """Carry a command of the driver out; return whether it was one."""
        kind, data = command[:2], command[2:]
        if kind[:1] == bytes([CLASS_RX]):
            # All frames that come are for this guest: there is nothing to filter.
            return len(kind) == 2 and kind[1] < 6 and len(data) == 1
        if kind == bytes([CLASS_MAC, MAC_TABLE_SET]):
            return True
        if kind == bytes([CLASS_MAC, MAC_ADDR_SET]) and len(data) == 6:
            self.mac = data
            return True
        if kind == bytes([CLASS_ANNOUNCE, 0]):
            self._announce = False
            return True
        if kind == bytes([CLASS_MQ, VQ_PAIRS_SET]) and len(data) == 2:
            return self._take_pairs(int.from_bytes(data, "little"))
        return False

    def _take_pairs(self, pairs: int) -> bool:
        """Serve as many pairs of queues as the driver says, if it may."""
        if not self.accepted & FEATURE_MQ or not 1 <= pairs <= self._most_pairs:
            return False
        self._use(pairs)
        # Frames may wait in them already, whose notifications nobody heard.
        self._backend.wake()
        return True

    def _tell_status(self) -> None:
        if self._link != self._wire:
            self._link = self._wire
            self.transport.interrupt_config()

    # ---- state ------------------------------------------------------------

    def pause(self) -> None:
        with self._changed:
            self._paused = True
            while self._fetching:
                self._changed.wait()
            if self.accepted:
                self.settle()

    def resume(self) -> None:
        with self.lock:
            self._paused = False
            if self._announce:
                self.transport.interrupt_config()
            self._tell_status()

    def save(self) -> NetState:
        with self.lock:
            connections = self._backend.connections()
            return NetState(self.mac, self._link, self._announce, connections, self._pairs)

    def restore(self, state: NetState) -> None:
        if len(state.mac) != len(self.mac):
            raise StateError("virtio network: an address of another length", seen=len(state.mac))
        if not 1 <= state.pairs <= self._most_pairs:
            raise StateError(
                "virtio network: another number of pairs of queues",
                expected=self._most_pairs,
                seen=state.pairs,
            )
        with self.lock:
            self._forget()
            self._use(state.pairs)
            self.mac, self._link, self._announce = state.mac, state.link, state.announce
            self.connections = state.connections
