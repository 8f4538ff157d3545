"""virtio network device (virtio 1.2 section 5.1): one pair of queues, no offloads.

Frames go to a `NetBackend` and come from it by `deliver`. A network may lose
frames, and so does this device: those for which nobody has room, and those on
their way while the machine is copied or restored.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Protocol

from ringzero.devices.virtio.device import VIRTIO_DEVICES, VirtioDevice
from ringzero.errors import StateError
from ringzero.records import record

RECEIVE, TRANSMIT = 0, 1
QUEUE_SIZE = 256
FEATURE_MTU, FEATURE_MAC, FEATURE_STATUS = 1 << 3, 1 << 5, 1 << 16
LINK_UP = 1
# Section 5.1.4: MAC, status, pairs of queues (there without being offered), MTU.
CONFIG = struct.Struct("<6sHHH")
# Section 5.1.6: flags, GSO type, header length, GSO size, checksum start and offset, buffers.
HEADER = struct.Struct("<BBHHHHH")
ONE_BUFFER = HEADER.pack(0, 0, 0, 0, 0, 0, 1)
# IEEE 802.3: addresses and type; a VLAN tag besides.
ETHERNET_HEADER, VLAN_TAG = 14, 4
# Frames for the guest that wait for its buffers before `deliver` takes no more.
BACKLOG = 256


class NetBackend(Protocol):
    """Where the guest's frames go. The device calls, holding its lock; none of it may wait."""

    def send(self, frame: bytes) -> None:
        """Take a frame, or drop it."""
        ...

    def room(self) -> None:
        """Hear that `deliver` takes frames again."""
        ...


@record
class NetState:
    """The device's address, and whether the guest was told that the link is up."""

    mac: bytes
    link: bool


@VIRTIO_DEVICES.register("net")
class Net(VirtioDevice[NetState]):
    """A network interface with the address `mac`, 6 bytes. Frames hold up to `mtu` bytes.

    `received` and `sent` count the guest's frames, `dropped` those that found no room.
    """

    device_id = 1
    state_type = NetState

    def __init__(self, mac: bytes, backend: NetBackend, mtu: int = 1500) -> None:
        super().__init__(
            queue_sizes=(QUEUE_SIZE, QUEUE_SIZE),
            features=FEATURE_MTU | FEATURE_MAC | FEATURE_STATUS,
        )
        self.mac = mac
        self._backend = backend
        self._mtu = mtu
        self._largest = mtu + ETHERNET_HEADER + VLAN_TAG
        self._backlog: deque[bytes] = deque()
        self._pressed = False
        # Whether there is a link, and whether the guest was told so.
        self._wire = self._link = False
        self._paused = False
        self.received = self.sent = self.dropped = 0

    # ---- the backend's calls, from any thread -----------------------------

    def deliver(self, frame: bytes) -> bool:
        """Take a frame for the guest; False when there is no room, and `room` will tell."""
        with self.lock:
            if not self.accepted or not ETHERNET_HEADER <= len(frame) <= self._largest:
                self.dropped += 1
                return True
            if len(self._backlog) >= BACKLOG:
                self._pressed = True
                return False
            self._backlog.append(frame)
            self.transport.serve(RECEIVE)
            return True

    def set_link(self, up: bool) -> None:
        """Say whether frames find their way; the guest hears of it."""
        with self.lock:
            self._wire = up
            if not self._paused:
                self._tell_link()

    def renew(self, mac: bytes) -> None:
        """Give a copied machine another address, before it runs; drivers read it at their start."""
        with self.lock:
            self.mac = mac

    # ---- the transport's calls --------------------------------------------

    def config(self) -> bytes:
        return CONFIG.pack(self.mac, LINK_UP * self._link, 1, self._mtu)

    def reset(self) -> None:
        self._backlog.clear()
        self._link = self._wire

    def notify(self, index: int) -> None:
        if index == TRANSMIT:
            self._drain()
        else:
            self._feed()

    def _drain(self) -> None:
        queue = self.queues[TRANSMIT]
        for chain in queue.requests():
            frame = chain.gather(HEADER.size + self._largest + 1)[HEADER.size :]
            if ETHERNET_HEADER <= len(frame) <= self._largest:
                self._backend.send(frame)
                self.sent += 1
            else:
                self.dropped += 1
            queue.push(chain, 0)
        self.complete(queue)

    def _feed(self) -> None:
        queue = self.queues[RECEIVE]
        if not queue.ready:
            return
        while self._backlog:
            chain = queue.pop()
            if chain is None:
                if queue.rearm():
                    continue
                break
            frame = ONE_BUFFER + self._backlog.popleft()
            if chain.writable_size < len(frame):
                # The driver knows the MTU; it gets the buffer back empty.
                self.dropped += 1
                queue.push(chain, 0)
                continue
            queue.push(chain, chain.scatter(frame))
            self.received += 1
        self.complete(queue)
        if self._pressed and len(self._backlog) <= BACKLOG // 2:
            self._pressed = False
            self._backend.room()

    def _tell_link(self) -> None:
        if self._link != self._wire:
            self._link = self._wire
            self.transport.interrupt_config()

    # ---- state ------------------------------------------------------------

    def pause(self) -> None:
        with self.lock:
            self._paused = True

    def resume(self) -> None:
        with self.lock:
            self._paused = False
            self._tell_link()

    def save(self) -> NetState:
        with self.lock:
            return NetState(self.mac, self._link)

    def restore(self, state: NetState) -> None:
        if len(state.mac) != len(self.mac):
            raise StateError("virtio network: an address of another length", seen=len(state.mac))
        with self.lock:
            self._backlog.clear()
            self.mac, self._link = state.mac, state.link
