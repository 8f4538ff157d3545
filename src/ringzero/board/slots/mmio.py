"""Slots for virtio over MMIO: a window of memory and an interrupt line each.

A guest finds them by what its firmware tables say of `MmioSlots.used`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ringzero.board.slots.contract import Doorbell, Slot, Slots, StatusRegister, TransmitQueue
from ringzero.core.bus import Bus
from ringzero.core.irq import IrqLine
from ringzero.core.memory import GuestMemory
from ringzero.devices.virtio.device import VirtioDevice
from ringzero.devices.virtio.mmio import (
    INTERRUPT_ACKNOWLEDGE,
    INTERRUPT_STATUS,
    QUEUE_NOTIFY,
    WINDOW_SIZE,
    VirtioMmio,
)


class MmioSlot(Slot):
    """A window of `size` bytes at guest-physical `base`; `irq` is its line's number."""

    size = WINDOW_SIZE

    def __init__(self, transport: VirtioMmio, base: int, irq: int) -> None:
        super().__init__(transport, transport.device)
        self._transport = transport
        self.base = base
        self.irq = irq

    @property
    def failure(self) -> str | None:
        return self._transport.failure

    def doorbells(self) -> Iterator[Doorbell]:
        for index in range(len(self._transport.device.queue_sizes)):
            ring = partial(self._transport.write, QUEUE_NOTIFY, 4, index)
            yield Doorbell(self.base + QUEUE_NOTIFY, 4, index, ring)

    def status_registers(self) -> Iterator[StatusRegister]:
        yield StatusRegister(
            self.base + INTERRUPT_STATUS,
            self.base + INTERRUPT_ACKNOWLEDGE,
            self._transport.share_reasons,
        )

    def transmit_queues(self) -> Iterator[TransmitQueue]:
        transport = self._transport
        for number, ready in transport.device.drained():
            share = partial(transport.share_queue, number)
            yield TransmitQueue(self.base + QUEUE_NOTIFY, number, share, ready)


class MmioSlots(Slots):
    """Windows on `bus` from `base` on, `stride` bytes apart.

    `take_line` gives the number and the wire of a free interrupt line; it raises DeviceError.
    """

    def __init__(
        self,
        memory: GuestMemory,
        bus: Bus,
        base: int,
        stride: int,
        take_line: Callable[[], tuple[int, IrqLine]],
    ) -> None:
        self._memory = memory
        self._bus = bus
        self._bases = itertools.count(base, stride)
        self._take_line = take_line
        self.used: list[MmioSlot] = []

    def place(self, name: str, device: VirtioDevice[Any]) -> MmioSlot:
        number, line = self._take_line()
        base = next(self._bases)
        slot = MmioSlot(VirtioMmio(self._memory, line, device), base, number)
        self._bus.attach(name, base, slot.size, slot.part)
        self.used.append(slot)
        return slot
