"""What virtio devices are to a guest by whatever transport (virtio 1.2 sections 2 and 3).

Status, features, queues, reasons for interrupts and the generation of the configuration are
here; a transport adds where its registers lie and how its interrupts go out
(`ringzero.devices.virtio.mmio`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ringzero.core.irq import InterruptStatus, IrqLine, SharedStatus
from ringzero.core.memory import GuestMemory
from ringzero.devices.contract import Device
from ringzero.devices.virtio.device import VirtioDevice
from ringzero.devices.virtio.queue import QueueError, QueueState, Virtqueue
from ringzero.errors import StateError
from ringzero.records import record

if TYPE_CHECKING:
    from ringzero.core.transmit import TransmitDrain

# Section 2.1: device status.
DRIVER_OK, FEATURES_OK, NEEDS_RESET = 4, 8, 64
# Section 6: features that every device of ours has.
INDIRECT_DESCRIPTORS, EVENT_IDX, VERSION_1 = 1 << 28, 1 << 29, 1 << 32
COMMON_FEATURES = INDIRECT_DESCRIPTORS | EVENT_IDX | VERSION_1
# Reasons of interrupts, the same bits for all transports (4.1.4.5, 4.2.2).
USED_BUFFER, CONFIG_CHANGED = 1, 2
# How many feature bits there are to select from, 32 at a time.
FEATURE_BITS = 128
MASK_32 = 0xFFFF_FFFF


@record
class TransportState:
    """Registers that every transport has, and the queues; the device saves itself."""

    status: int
    features: int
    device_select: int
    driver_select: int
    queue_select: int
    interrupts: int
    generation: int
    queues: tuple[QueueState, ...]


S = TypeVar("S", bound=TransportState)


class VirtioTransport(Device[S]):
    """One virtio device as its driver sees it, but for the registers' places.

    A transport's `read` and `write` come to the methods below, holding `_lock`. `irq` is its
    interrupt line, and `_reasons` the register that says why it is high.
    """

    def __init__(self, memory: GuestMemory, irq: IrqLine, device: VirtioDevice[Any]) -> None:
        self._reasons = InterruptStatus(irq)
        self.device = device
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
            self._reasons.clear(MASK_32)

    def share_reasons(self, shared: SharedStatus) -> None:
        """Have an engine hold the register that says why the line is high."""
        with self._lock:
            self._reasons.share(shared)

    def share_queue(self, index: int, drain: TransmitDrain) -> None:
        """Have an engine drain a queue whenever the device lends it."""
        with self._lock:
            self._queues[index].drain = drain

    def _interrupt(self, reason: int, queue: Virtqueue | None = None) -> None:
        """Interrupt the driver for `reason`; `queue` is the one with used buffers.

        The lock is held. A transport that has messages sends those.
        """
        self._reasons.set(reason)

    # ---- what the device calls: Transport ---------------------------------

    def interrupt_queue(self, queue: Virtqueue) -> None:
        with self._lock:
            self._interrupt(USED_BUFFER, queue)

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
            for queue in self._queues:
                queue.reclaim()
            if self._status & DRIVER_OK:
                self._interrupt(CONFIG_CHANGED)

    # ---- what the driver does ---------------------------------------------

    def _notify(self, index: int) -> None:
        """Serve a queue, if the driver is ready for it."""
        if index >= len(self._queues) or self._status & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK:
            return
        if self._queues[index].ready:
            try:
                self.device.notify(index)
            except QueueError as fault:
                self.fail(f"queue {index}: {fault.message}")

    def _offered_features(self) -> int:
        """Return the 32 feature bits that the driver has selected to read."""
        shift = 32 * self._device_select
        return self._offered >> shift & MASK_32 if shift < FEATURE_BITS else 0

    def _take_features(self, value: int) -> None:
        """Take the 32 feature bits that the driver has selected to write."""
        shift = 32 * self._driver_select
        if shift < FEATURE_BITS and not self._status & FEATURES_OK:
            self._features = self._features & ~(MASK_32 << shift) | value << shift

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

    def _selected(self) -> Virtqueue | None:
        """Return the queue that the driver has selected, if there is one."""
        index = self._queue_select
        return self._queues[index] if index < len(self._queues) else None

    def _enable(self, queue: Virtqueue) -> None:
        """Start a queue where the driver has put it."""
        if not queue.ready:
            try:
                queue.enable(bool(self._features & EVENT_IDX))
            except QueueError as fault:
                self.fail(fault.message)

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
                if self.device.wants(index):
                    self._notify(index)

    def close(self) -> None:
        self.device.close()
        with self._lock:
            # The queues' views would keep the guest's memory.
            self._reset_queues()

    def _common_state(self) -> TransportState:
        """Return what every transport saves; the lock is held."""
        return TransportState(
            self._status,
            self._features,
            self._device_select,
            self._driver_select,
            self._queue_select,
            self._reasons.value,
            self._generation,
            tuple(queue.save() for queue in self._queues),
        )

    def _restore_common(self, state: TransportState) -> None:
        """Put back what every transport saves; the lock is held. Raises StateError."""
        # A machine that was saved before the device had its further queues never used them.
        if not self.device.least_queues <= len(state.queues) <= len(self._queues):
            raise StateError(
                "virtio: another number of queues",
                expected=len(self._queues),
                seen=len(state.queues),
            )
        self._clear_registers()
        for queue in self._queues[len(state.queues) :]:
            queue.reset()
        self._features = state.features & ((1 << FEATURE_BITS) - 1)
        for queue, saved in zip(self._queues, state.queues, strict=False):
            queue.restore(saved, bool(self._features & EVENT_IDX))
        self._status = state.status & 0xFF
        self._device_select = state.device_select & MASK_32
        self._driver_select = state.driver_select & MASK_32
        self._queue_select = state.queue_select & MASK_32
        self._reasons.restore(state.interrupts & (USED_BUFFER | CONFIG_CHANGED))
        self._generation = state.generation & MASK_32
        self.device.accepted = self._features if self._status & DRIVER_OK else 0


def with_half(old: int, value: int, high: int) -> int:
    """Return the 64-bit `old` with its low or high half replaced."""
    if high:
        return old & MASK_32 | value << 32
    return old & MASK_32 << 32 | value
