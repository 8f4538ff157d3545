"""virtio over MMIO, version 2 (virtio 1.2 section 4.2)."""

from __future__ import annotations

from ringzero.devices.virtio.queue import Virtqueue
from ringzero.devices.virtio.transport import (
    MASK_32,
    TransportState,
    VirtioTransport,
    with_half,
)

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


class VirtioMmio(VirtioTransport[TransportState]):
    """The window through which the guest reaches one virtio device.

    `irq` is edge-triggered: it rises when the first interrupt reason comes
    and falls when the driver acknowledges, which drivers do before they look
    at the queues; for reasons left over it rises again.
    """

    state_type = TransportState

    # ---- registers --------------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        if offset == INTERRUPT_STATUS:
            return self._reasons.value
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
            return self._offered_features()
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

    def write(self, offset: int, width: int, value: int) -> None:
        with self._lock:
            if offset == QUEUE_NOTIFY:
                self._notify(value & 0xFFFF)
            elif offset == INTERRUPT_ACKNOWLEDGE:
                self._reasons.clear(value)
            elif offset >= CONFIG:
                self.device.write_config(offset - CONFIG, width, value)
            elif width == 4:
                self._write_register(offset, value & MASK_32)

    def _write_register(self, offset: int, value: int) -> None:
        if offset == STATUS:
            self._write_status(value & 0xFF)
        elif offset == DEVICE_FEATURES_SELECT:
            self._device_select = value
        elif offset == DRIVER_FEATURES_SELECT:
            self._driver_select = value
        elif offset == DRIVER_FEATURES:
            self._take_features(value)
        elif offset == QUEUE_SELECT:
            self._queue_select = value
        else:
            queue = self._selected()
            if queue is not None:
                self._write_queue(queue, offset, value)

    def _write_queue(self, queue: Virtqueue, offset: int, value: int) -> None:
        if offset == QUEUE_READY:
            if value & 1:
                self._enable(queue)
            else:
                queue.disable()
            return
        if queue.ready:
            return
        high = offset & 4
        if offset == QUEUE_SIZE:
            queue.size = value
        elif offset & ~4 == QUEUE_DESCRIPTORS:
            queue.descriptors = with_half(queue.descriptors, value, high)
        elif offset & ~4 == QUEUE_DRIVER:
            queue.available = with_half(queue.available, value, high)
        elif offset & ~4 == QUEUE_DEVICE:
            queue.used = with_half(queue.used, value, high)

    # ---- state ------------------------------------------------------------

    def save(self) -> TransportState:
        with self._lock:
            return self._common_state()

    def restore(self, state: TransportState) -> None:
        with self._lock:
            self._restore_common(state)
