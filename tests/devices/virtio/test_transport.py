"""A second transport, laid out as virtio over PCI: what it shares with MMIO is not written twice.

Its registers are those of virtio 1.2 section 4.1.4.3 (the common configuration), at the
offsets of the specification; the ISR is cleared by reading it, notifications lie behind it, and
each queue has a message of its own.
"""

from typing import ClassVar

import pytest

from ringzero.core.irq import IrqLine
from ringzero.core.memory import GuestMemory
from ringzero.core.state import from_tree, to_tree
from ringzero.devices.virtio.kinds.rng import Rng
from ringzero.devices.virtio.transport import (
    MASK_32,
    TransportState,
    VirtioTransport,
    with_half,
)
from ringzero.errors import StateError
from ringzero.records import field_names, record
from tests.devices.virtio.driver import MEMORY_SIZE, Driver

ISR, NOTIFY, CONFIG = 0x40, 0x44, 0x80
NO_VECTOR = 0xFFFF


@record
class FunctionState(TransportState):
    config_vector: int
    vectors: tuple[int, ...]


class Function(VirtioTransport[FunctionState]):
    """`send(vector)` sends a message; `level` is the interrupt line of one without vectors."""

    state_type = FunctionState

    def __init__(self, memory, send, device):
        self._send = send
        self._line = IrqLine(lambda level: None)
        self._config_vector = NO_VECTOR
        self._vectors = [NO_VECTOR] * len(device.queue_sizes)
        super().__init__(memory, self._line, device)

    @property
    def level(self):
        # With messages there is no use of the line.
        return self._line.level and NO_VECTOR in self._vectors

    def _interrupt(self, reason, queue=None):
        vector = self._config_vector if queue is None else self._vectors[self._queues.index(queue)]
        super()._interrupt(reason, queue)
        if vector != NO_VECTOR:
            self._send(vector)

    def read(self, offset, width):
        with self._lock:
            if offset == ISR:
                reasons = self._reasons.value
                self._reasons.clear(reasons)
                return reasons
            if offset >= CONFIG:
                return self.device.read_config(offset - CONFIG, width)
            queue = self._selected()
            registers = {
                0x04: self._offered_features(),
                0x10: self._config_vector,
                0x12: len(self._queues),
                0x14: self._status,
                0x15: self._generation & 0xFF,
                0x16: self._queue_select,
                0x18: queue.size if queue else 0,
                0x1C: int(queue is not None and queue.ready),
            }
            return registers.get(offset, 0)

    def write(self, offset, width, value):
        with self._lock:
            queue = self._selected()
            if offset == 0x00:
                self._device_select = value
            elif offset == 0x08:
                self._driver_select = value
            elif offset == 0x0C:
                self._take_features(value)
            elif offset == 0x10:
                self._config_vector = value
            elif offset == 0x14:
                self._write_status(value & 0xFF)
            elif offset == 0x16:
                self._queue_select = value
            elif offset == NOTIFY:
                self._notify(value)
            elif queue is not None and not queue.ready:
                self._write_queue(queue, offset, value)

    def _write_queue(self, queue, offset, value):
        high = offset & 4
        if offset == 0x18:
            queue.size = value
        elif offset == 0x1A:
            self._vectors[self._queue_select] = value
        elif offset == 0x1C and value:
            self._enable(queue)
        elif offset in (0x20, 0x24):
            queue.descriptors = with_half(queue.descriptors, value, high)
        elif offset in (0x28, 0x2C):
            queue.available = with_half(queue.available, value, high)
        elif offset in (0x30, 0x34):
            queue.used = with_half(queue.used, value, high)

    def save(self):
        with self._lock:
            common = self._common_state()
            values = {name: getattr(common, name) for name in field_names(TransportState)}
            return FunctionState(
                **values, config_vector=self._config_vector, vectors=tuple(self._vectors)
            )

    def restore(self, state):
        with self._lock:
            if len(state.vectors) != len(self._vectors):
                raise StateError("another number of vectors")
            self._restore_common(state)
            self._config_vector, self._vectors = state.config_vector, list(state.vectors)


class PciDriver(Driver):
    """The same driver, by other registers: what it writes for MMIO is translated."""

    PLACES: ClassVar = {
        0x70: 0x14, 0x24: 0x08, 0x20: 0x0C, 0x30: 0x16, 0x38: 0x18, 0x44: 0x1C, 0x50: NOTIFY,
        0x80: 0x20, 0x84: 0x24, 0x90: 0x28, 0x94: 0x2C, 0xA0: 0x30, 0xA4: 0x34,
    }  # fmt: skip

    def __init__(self, device, memory=None):
        memory = memory or GuestMemory([(0, MEMORY_SIZE)])
        super().__init__(device, memory=memory)
        self.messages = []
        self.transport = Function(memory, self.messages.append, device)

    def read(self, offset):
        return self.transport.read(self.PLACES[offset], 4)

    def write(self, offset, value):
        self.transport.write(self.PLACES[offset], 4, value)


@pytest.fixture
def driver():
    driver = PciDriver(Rng())
    for number in range(len(driver.device.queue_sizes)):
        driver.transport.write(0x16, 2, number)
        driver.transport.write(0x1A, 2, 5 + number)
    return driver


def test_buffers_come_back_with_the_queues_message(driver):
    driver.start()
    (address,) = driver.add(0, writable=[32])
    assert driver.used(0) == [32] and any(driver.memory.read(address, 32))
    assert driver.messages == [5] and not driver.transport.level


def test_without_a_vector_the_line_is_up_until_the_isr_is_read(driver):
    driver.start()
    driver.transport._vectors[0] = NO_VECTOR
    driver.add(0, writable=[8])
    assert driver.transport.level
    assert driver.transport.read(ISR, 1) == 1
    assert not driver.transport.level and driver.transport.read(ISR, 1) == 0


def test_a_changed_configuration(driver):
    driver.start()
    driver.transport.write(0x10, 2, 9)
    driver.transport.interrupt_config()
    assert driver.messages == [9]
    assert driver.transport.read(0x15, 1) == 1 and driver.transport.read(ISR, 1) == 2


def test_features_that_were_not_offered_are_refused(driver):
    driver.features |= 1 << 40
    with pytest.raises(AssertionError, match="features refused"):
        driver.start()


def test_a_queue_outside_of_ram_stops_the_device(driver):
    driver.start()
    driver.memory.write_int(driver.queues[0].descriptors, 8, 1 << 40)
    driver.offer(driver.queues[0], 0)
    driver.memory.write_int(driver.queues[0].descriptors + 8, 4, 64)
    driver.notify(0)
    assert "queue 0" in driver.transport.failure
    assert driver.transport.read(0x14, 1) & 64


def test_it_goes_on_in_another_machine(driver):
    driver.start()
    driver.transport.pause()
    tree = to_tree(driver.transport.save())
    assert tree["vectors"] == [5] and tree["status"] == 15
    later = PciDriver(Rng(), memory=driver.memory)
    later.queues = driver.queues
    later._free = driver._free
    later.transport.restore(from_tree(FunctionState, tree))
    assert to_tree(later.transport.save()) == tree
    later.add(0, writable=[16])
    assert later.used(0) == [16] and later.messages == [5]
    assert later.transport.read(0x04, 4) & MASK_32
