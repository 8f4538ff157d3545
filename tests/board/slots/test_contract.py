"""The contract of slots, over those of the tree and a toy: another transport, another place."""

from functools import partial

import pytest

from ringzero.board.slots.contract import Doorbell, Slot, Slots
from ringzero.board.slots.mmio import MmioSlots
from ringzero.core.bus import Bus
from ringzero.core.irq import IrqLine
from ringzero.core.memory import GuestMemory
from ringzero.devices.contract import Device
from ringzero.devices.virtio.kinds.rng import Rng
from ringzero.devices.virtio.mmio import QUEUE_NOTIFY, VirtioMmio
from ringzero.devices.virtio.transport import TransportState
from ringzero.errors import DeviceError
from ringzero.records import record
from tests.devices.virtio.driver import MEMORY_SIZE, Driver

ROOM = 3


@record
class IndexedState:
    index: int
    registers: TransportState


class Indexed(Device[IndexedState]):
    """virtio behind two ports: at 0 the number of a register, at 4 its value; a bell at 8."""

    state_type = IndexedState

    def __init__(self, memory, irq, device):
        self.registers = VirtioMmio(memory, irq, device)
        self._index = 0

    def read(self, offset, width):
        return self.registers.read(self._index, width) if offset == 4 else self._index

    def write(self, offset, width, value):
        if offset == 8:
            self.registers.write(QUEUE_NOTIFY, 4, value)
        elif offset == 4:
            self.registers.write(self._index, width, value)
        else:
            self._index = value & 0xFFF

    def reset(self):
        self.registers.reset()

    def save(self):
        return IndexedState(self._index, self.registers.save())

    def restore(self, state):
        self._index = state.index & 0xFFF
        self.registers.restore(state.registers)

    def pause(self):
        self.registers.pause()

    def resume(self):
        self.registers.resume()


class PortSlot(Slot):
    def __init__(self, port, part):
        super().__init__(part, part.registers.device)
        self.port = port

    @property
    def failure(self):
        return self.part.registers.failure

    def doorbells(self):
        for index in range(len(self.device.queue_sizes)):
            yield Doorbell(self.port + 8, 4, index, partial(self.part.write, 8, 4, index))


class PortSlots(Slots):
    def __init__(self, memory, bus):
        self._memory = memory
        self._bus = bus
        self._free = list(range(0x100, 0x100 + 16 * ROOM, 16))

    def place(self, name, device):
        if not self._free:
            raise DeviceError("no ports are left")
        slot = PortSlot(
            self._free.pop(0), Indexed(self._memory, IrqLine(lambda level: None), device)
        )
        self._bus.attach(name, slot.port, 12, slot.part)
        return slot


def mmio(memory, bus):
    lines = iter((n, IrqLine(lambda level: None)) for n in range(ROOM))

    def take():
        line = next(lines, None)
        if line is None:
            raise DeviceError("no lines are left")
        return line

    return MmioSlots(memory, bus, 0xD000_0000, 0x1000, take)


@pytest.fixture(params=[mmio, PortSlots], ids=["mmio", "ports"])
def slots(request):
    bus, memory = Bus("toy"), GuestMemory([(0, MEMORY_SIZE)])
    return request.param(memory, bus), bus, memory


class Through:
    """What a guest reaches a slot's transport by, for the driver of the tests: a bus."""

    def __init__(self, bus, slot):
        self._bus = bus
        self._port = getattr(slot, "port", None)
        self._base = getattr(slot, "base", None)

    def read(self, offset, width):
        if self._port is None:
            return self._bus.read(self._base + offset, width)
        self._bus.write(self._port, 4, offset)
        return self._bus.read(self._port + 4, width)

    def write(self, offset, width, value):
        if self._port is None:
            self._bus.write(self._base + offset, width, value)
        else:
            self._bus.write(self._port, 4, offset)
            self._bus.write(self._port + 4, width, value)


def driven(slots, bus, memory, name="rng"):
    """Place an entropy source, and set it up as a guest does."""
    device = Rng(lambda count: b"r" * count)
    slot = slots.place(name, device)
    driver = Driver.__new__(Driver)
    spare = Driver(Rng(), memory=memory)
    driver.__dict__.update(spare.__dict__, device=device, transport=Through(bus, slot))
    return slot, driver.start()


def test_a_guest_reaches_the_device(slots):
    places, bus, memory = slots
    slot, driver = driven(places, bus, memory)
    (buffer,) = driver.add(0, writable=[16])
    assert driver.used(0) == [16] and memory.read(buffer, 16) == b"r" * 16
    assert slot.failure is None


def test_doorbells_ring(slots):
    places, bus, memory = slots
    slot, driver = driven(places, bus, memory)
    driver.add(0, writable=[16], notify=False)
    (bell,) = slot.doorbells()
    assert bus.find(bell.address).device is slot.part
    bell.ring()
    assert driver.used(0) == [16]
    driver.add(0, writable=[8], notify=False)
    bus.write(bell.address, bell.width, bell.value)
    assert driver.used(0) == [8]


def test_a_slot_says_why_its_device_stopped(slots):
    places, bus, memory = slots
    slot, driver = driven(places, bus, memory)
    memory.write_int(driver.queues[0].available + 2, 2, 500)
    driver.notify(0)
    assert "queue 0" in slot.failure


def test_state_of_transport_and_device(slots):
    places, bus, memory = slots
    slot, driver = driven(places, bus, memory)
    slot.part.pause()
    saved = slot.part.save()
    driver.write(0x70, 0)
    slot.part.restore(saved)
    slot.part.resume()
    assert slot.part.save() == saved and isinstance(saved, slot.part.state_type)
    driver.add(0, writable=[8])
    assert driver.used(0) == [8]


def test_each_has_a_place_of_its_own_until_there_is_none(slots):
    places, bus, _ = slots
    taken = [places.place(f"rng{n}", Rng()) for n in range(ROOM)]
    assert len({slot.part for slot in taken}) == len(bus.attachments) == ROOM
    assert len({bell.address for slot in taken for bell in slot.doorbells()}) == ROOM
    with pytest.raises(DeviceError):
        places.place("more", Rng())
