"""virtio over MMIO, version 2 (virtio 1.2 section 4.2)."""

from __future__ import annotations

from typing import Any

from ringzero.core.irq import IrqLine
from ringzero.core.memory import GuestMemory
from ringzero.devices.contract import Device
from ringzero.devices.virtio.device import VirtioDevice
from ringzero.devices.virtio.queue import QueueError, QueueState, Virtqueue
from ringzero.errors import StateError
from ringzero.records import record

WINDOW_SIZE = 0x1000
MAGIC, MMIO_VERSION = 0x74726976, 2
# "RZ": no vendor number is assigned, and drivers do not look at it.
VENDOR = 0x5A52
# Section 4.2.2, table 4.1.
DEVICE_FEATURES, DEVICE_FEATURES_SELECT = 0x010, 0x014
DRIVER_FEATURES, DRIVER_FEATURES_SELECT = 0x020, 0x024
QUEUE_SELECT, QUEUE_SIZE_MAX, QUEUE_SIZE, QUEUE_READY = 0x030, 0x034, 0x038, 0x044
QUEUE_NOTIFY, INTERRUPT_STATUS, INTERRUPT_ACKNOWLEDGE, STATUS = 0x050, 0x060, 0x064, 0x070
QUEUE_DESCRIPTORS, QUEUE_DRIVER, QUEUE_DEVICE = 0x080, 0x090, 0x0A0
SHARED_MEMORY_FIRST, SHARED_MEMORY_END = 0x0B0, 0x0C0
CONFIG_GENERATION, CONFIG = 0x0FC, 0x100
# Section 2.1: device status.
DRIVER_OK, FEATURES_OK, NEEDS_RESET = 4, 8, 64
# Section 6: features that every device of ours has.
INDIRECT_DESCRIPTORS, EVENT_IDX, VERSION_1 = 1 << 28, 1 << 29, 1 << 32
COMMON_FEATURES = INDIRECT_DESCRIPTORS | EVENT_IDX | VERSION_1
USED_BUFFER, CONFIG_CHANGED = 1, 2
MASK_32 = 0xFFFF_FFFF


@record
class VirtioMmioState:
    """Registers of the transport and its queues; the device saves itself."""

    status: int
    features: int
    device_select: int
    driver_select: int
    queue_select: int
    interrupts: int
    generation: int
    queues: tuple[QueueState, ...]


class VirtioMmio(Device[VirtioMmioState]):
    """The window through which the guest reaches one virtio device.

    `irq` is edge-triggered: it rises when the first interrupt reason comes
    and falls when the driver acknowledges, which drivers do before they look
    at the queues; for reasons left over it rises again.
    """

    state_type = VirtioMmioState

    def __init__(self, memory: GuestMemory, irq: IrqLine, device: VirtioDevice[Any]) -> None:
        self.device = device
        self._irq = irq
        self._lock = device.lock
        self._queues = [Virtqueue(memory, size) for size in device.queue_sizes]
        self._offered = device.features | COMMON_FEATURES
        device.queues = self._queues
        device.transport = self
        # Why the device stopped serving a driver that broke the rules.
        self.failure: str | None = None
        self._paused = False
        self._clear_registers()

    def _clear_registers(self) -> None:
        self._status = self._features = 0
        self._device_select = self._driver_select = self._queue_select = 0
        self._interrupts = 0
        self._generation = 0
        self.failure = None

    def _reset_queues(self) -> None:
        for queue in self._queues:
            queue.reset()

    def reset(self) -> None:
        with self._lock:
            self.device.reset()
            self.device.accepted = 0
            self._clear_registers()
            self._reset_queues()
            self._irq.set(False)

    # ---- what the device calls: Transport ---------------------------------

    def interrupt_queue(self) -> None:
        self._interrupt(USED_BUFFER)

    def interrupt_config(self) -> None:
        with self._lock:
            self._generation = self._generation + 1 & MASK_32
            if self._status & DRIVER_OK:
                self._interrupt(CONFIG_CHANGED)

    def serve(self, index: int) -> None:
        with self._lock:
            if not self._paused:
                self._notify(index)

    def serves(self, index: int) -> bool:
        return (
            not self._paused
            and self._status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
            and self._queues[index].ready
        )

    def fail(self, reason: str) -> None:
        with self._lock:
            self.failure = reason
            self._status |= NEEDS_RESET
            if self._status & DRIVER_OK:
                self._interrupt(CONFIG_CHANGED)

    def _interrupt(self, reason: int) -> None:
        with self._lock:
            self._interrupts |= reason
            self._irq.set(True)

    # ---- registers --------------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        if offset == INTERRUPT_STATUS:
            return self._interrupts
        with self._lock:
            if offset >= CONFIG:
                return self.device.read_config(offset - CONFIG, width)
            # Section 4.2.2.2: the driver uses 32-bit accesses to these registers.
            return self._read_register(offset) if width == 4 else 0

    def _read_register(self, offset: int) -> int:
        if offset == STATUS:
            return self._status
        if offset == 0x000:
            return MAGIC
        if offset == 0x004:
            return MMIO_VERSION
        if offset == 0x008:
            return self.device.device_id
        if offset == 0x00C:
            return VENDOR
        if offset == DEVICE_FEATURES:
            select = self._device_select
            return self._offered >> 32 * select & MASK_32 if select < 4 else 0
        if offset == QUEUE_SIZE_MAX:
            queue = self._selected()
            return queue.max_size if queue is not None else 0
        if offset == QUEUE_READY:
            queue = self._selected()
            return int(queue is not None and queue.ready)
        if SHARED_MEMORY_FIRST <= offset < SHARED_MEMORY_END:
            return MASK_32  # length -1: there is no such region
        if offset == CONFIG_GENERATION:
            return self._generation
        return 0

    def _selected(self) -> Virtqueue | None:
        index = self._queue_select
        return self._queues[index] if index < len(self._queues) else None

    def write(self, offset: int, width: int, value: int) -> None:
        with self._lock:
            if offset == QUEUE_NOTIFY:
                self._notify(value & 0xFFFF)
            elif offset == INTERRUPT_ACKNOWLEDGE:
                self._interrupts &= ~value
                self._irq.set(False)
                # A reason that came after the driver read the status needs an edge of its own.
                if self._interrupts:
                    self._irq.set(True)
            elif offset >= CONFIG:
                self.device.write_config(offset - CONFIG, width, value)
            elif width == 4:
                self._write_register(offset, value & MASK_32)

    def _notify(self, index: int) -> None:
        if index >= len(self._queues) or self._status & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK:
            return
        if self._queues[index].ready:
            try:
                self.device.notify(index)
            except QueueError as fault:
                self.fail(f"queue {index}: {fault.message}")

    def _write_register(self, offset: int, value: int) -> None:
        if offset == STATUS:
            self._write_status(value & 0xFF)
        elif offset == DEVICE_FEATURES_SELECT:
            self._device_select = value
        elif offset == DRIVER_FEATURES_SELECT:
            self._driver_select = value
        elif offset == DRIVER_FEATURES:
            shift = 32 * self._driver_select
            if shift < 128 and not self._status & FEATURES_OK:
                self._features = self._features & ~(MASK_32 << shift) | value << shift
        elif offset == QUEUE_SELECT:
            self._queue_select = value
        else:
            queue = self._selected()
            if queue is not None:
                self._write_queue(queue, offset, value)

    def _write_queue(self, queue: Virtqueue, offset: int, value: int) -> None:
        if offset == QUEUE_READY:
            if not value & 1:
                queue.ready = False
            elif not queue.ready:
                try:
                    queue.enable(bool(self._features & EVENT_IDX))
                except QueueError as fault:
                    self.fail(fault.message)
            return
        if queue.ready:
            return
        high = offset & 4
        if offset == QUEUE_SIZE:
            queue.size = value
        elif offset & ~4 == QUEUE_DESCRIPTORS:
            queue.descriptors = _half(queue.descriptors, value, high)
        elif offset & ~4 == QUEUE_DRIVER:
            queue.available = _half(queue.available, value, high)
        elif offset & ~4 == QUEUE_DEVICE:
            queue.used = _half(queue.used, value, high)

    def _write_status(self, value: int) -> None:
        if value == 0:
            self.reset()
            return
        before = self._status
        # Section 2.2.2: refuse features that were not offered, and legacy drivers.
        acceptable = not self._features & ~self._offered and self._features & VERSION_1
        if not before & FEATURES_OK and not acceptable:
            value &= ~FEATURES_OK
        # Only a reset takes bits away (section 2.1.1).
        self._status = before | value & ~NEEDS_RESET
        if self._status & DRIVER_OK and not before & DRIVER_OK:
            if not self._status & FEATURES_OK:
                self.fail("DRIVER_OK without FEATURES_OK")
                return
            self.device.accepted = self._features
            self.device.activate()

    # ---- state ------------------------------------------------------------

    def pause(self) -> None:
        with self._lock:
            self._paused = True
        self.device.pause()

    def resume(self) -> None:
        self.device.resume()
        with self._lock:
            self._paused = False
            # Buffers and input that were offered while nobody looked.
            for index in range(len(self._queues)):
                self._notify(index)

    def close(self) -> None:
        self.device.close()
        with self._lock:
            # The queues' views would keep the guest's memory.
            self._reset_queues()

    def save(self) -> VirtioMmioState:
        with self._lock:
            return VirtioMmioState(
                self._status,
                self._features,
                self._device_select,
                self._driver_select,
                self._queue_select,
                self._interrupts,
                self._generation,
                tuple(queue.save() for queue in self._queues),
            )

    def restore(self, state: VirtioMmioState) -> None:
        # A machine that was saved before the device had its further queues never used them.
        if not self.device.least_queues <= len(state.queues) <= len(self._queues):
            raise StateError(
                "virtio: another number of queues",
                expected=len(self._queues),
                seen=len(state.queues),
            )
        with self._lock:
            self._clear_registers()
            for queue in self._queues[len(state.queues) :]:
                queue.reset()
            self._features = state.features & ((1 << 128) - 1)
            for queue, saved in zip(self._queues, state.queues, strict=False):
                queue.restore(saved, bool(self._features & EVENT_IDX))
            self._status = state.status & 0xFF
            self._device_select = state.device_select & MASK_32
            self._driver_select = state.driver_select & MASK_32
            self._queue_select = state.queue_select & MASK_32
            self._interrupts = state.interrupts & (USED_BUFFER | CONFIG_CHANGED)
            self._generation = state.generation & MASK_32
            self.device.accepted = self._features if self._status & DRIVER_OK else 0
            # The controller restores its own view of the wire's level.
            self._irq.level = bool(self._interrupts)


def _half(old: int, value: int, high: int) -> int:
    """Return the 64-bit `old` with its low or high half replaced."""
    if high:
        return old & MASK_32 | value << 32
    return old & MASK_32 << 32 | value
