"""The guest's side of virtio over MMIO, for tests: drives a transport through its registers."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from ringzero.core.irq import IrqLine
from ringzero.core.memory import GuestMemory
from ringzero.devices.virtio.device import VirtioDevice
from ringzero.devices.virtio.mmio import VirtioMmio

MEMORY_SIZE = 4 << 20
VERSION_1, EVENT_IDX = 1 << 32, 1 << 29


@dataclass
class DriverQueue:
    index: int
    size: int
    descriptors: int
    available: int
    used: int
    available_index: int = 0
    used_index: int = 0
    free: list[int] = field(default_factory=list)
    chains: dict[int, list[int]] = field(default_factory=dict)


class Driver:
    """Sets a device up and exchanges buffers with it. `edges` counts rising interrupts."""

    def __init__(self, device: VirtioDevice, features: int = 0, memory: GuestMemory | None = None):
        self.memory = memory or GuestMemory([(0, MEMORY_SIZE)])
        self.edges = 0
        self.line = IrqLine(self._irq)
        self.device = device
        self.transport = VirtioMmio(self.memory, self.line, device)
        self.features = features | VERSION_1
        self.queues: list[DriverQueue] = []
        # Rings and buffers are taken from here on, upwards.
        self._free = 0x10000

    def _irq(self, level: bool) -> None:
        self.edges += level

    def alloc(self, size: int) -> int:
        address = self._free
        self._free += (size + 63) & ~63
        assert self._free <= MEMORY_SIZE
        return address

    def read(self, offset: int) -> int:
        return self.transport.read(offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.transport.write(offset, 4, value)

    def start(self, sizes: dict[int, int] | None = None) -> Driver:
        """Do what section 3.1.1 of the specification says; every queue, or those in `sizes`."""
        self.write(0x70, 0)
        self.write(0x70, 1)
        self.write(0x70, 3)
        for half in (0, 1):
            self.write(0x24, half)
            self.write(0x20, self.features >> 32 * half & 0xFFFFFFFF)
        self.write(0x70, 11)
        assert self.read(0x70) == 11, "features refused"
        for index in range(len(self.device.queue_sizes)):
            self.setup_queue(index, (sizes or {}).get(index, 64))
        self.write(0x70, 15)
        return self

    def setup_queue(self, index: int, size: int) -> DriverQueue:
        queue = DriverQueue(
            index, size, self.alloc(16 * size), self.alloc(6 + 2 * size), self.alloc(6 + 8 * size)
        )
        queue.free = list(range(size))
        self.write(0x30, index)
        self.write(0x38, size)
        for offset, address in (
            (0x80, queue.descriptors),
            (0x90, queue.available),
            (0xA0, queue.used),
        ):
            self.write(offset, address & 0xFFFFFFFF)
            self.write(offset + 4, address >> 32)
        self.write(0x44, 1)
        self.queues.append(queue)
        return queue

    def add(
        self, index: int, readable=(), writable=(), notify: bool = True, indirect: bool = False
    ):
        """Offer one chain: `readable` are bytes, `writable` sizes; return where the latter are.

        One that is at a place of its own is (address, size).
        """
        queue = self.queues[index]
        buffers = []
        for data in readable:
            address = self.alloc(max(len(data), 1))
            self.memory.write(address, data)
            buffers.append((address, len(data), 0))
        addresses = []
        for item in writable:
            address, size = item if isinstance(item, tuple) else (self.alloc(max(item, 1)), item)
            addresses.append(address)
            buffers.append((address, size, 2))
        if indirect:
            table = self.alloc(16 * len(buffers))
            for number, (address, length, flags) in enumerate(buffers):
                more = 1 if number + 1 < len(buffers) else 0
                self.describe(table, number, address, length, flags | more, number + 1)
            buffers = [(table, 16 * len(buffers), 4)]
        numbers = [queue.free.pop() for _ in buffers]
        for place, (address, length, flags) in enumerate(buffers):
            last = place + 1 == len(buffers)
            following = 0 if last else numbers[place + 1]
            self.describe(
                queue.descriptors,
                numbers[place],
                address,
                length,
                flags | (0 if last else 1),
                following,
            )
        queue.chains[numbers[0]] = numbers
        self.offer(queue, numbers[0])
        if notify:
            self.notify(index)
        return addresses

    def describe(self, table, number, address, length, flags, following) -> None:
        self.memory.write(
            table + 16 * number, struct.pack("<QIHH", address, length, flags, following)
        )

    def offer(self, queue: DriverQueue, head: int) -> None:
        slot = queue.available_index % queue.size
        self.memory.write_int(queue.available + 4 + 2 * slot, 2, head)
        queue.available_index = (queue.available_index + 1) & 0xFFFF
        self.memory.write_int(queue.available + 2, 2, queue.available_index)

    def notify(self, index: int) -> None:
        self.write(0x50, index)

    def used(self, index: int) -> list[int]:
        """Take everything that the device gave back; return the lengths written."""
        queue = self.queues[index]
        lengths = []
        while queue.used_index != self.memory.read_int(queue.used + 2, 2):
            slot = queue.used_index % queue.size
            head, length = struct.unpack("<II", self.memory.read(queue.used + 4 + 8 * slot, 8))
            queue.free += queue.chains.pop(head)
            queue.used_index = (queue.used_index + 1) & 0xFFFF
            lengths.append(length)
        return lengths

    def acknowledge(self) -> int:
        status = self.read(0x60)
        self.write(0x64, status)
        return status
