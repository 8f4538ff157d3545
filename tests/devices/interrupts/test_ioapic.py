import pytest

from ringzero.devices.interrupts.ioapic import Ioapic
from ringzero.devices.interrupts.lapic import ApicBus, Lapic, MessageBus


@pytest.fixture
def bus():
    return ApicBus()


@pytest.fixture
def lapic(bus):
    lapic = Lapic(0, bus, lambda: 0, 10**9)
    lapic.write(0xF0, 4, 0x1FF)
    return lapic


@pytest.fixture
def ioapic(bus, lapic):
    return Ioapic(bus)


def put(ioapic, pin, low, high=0):
    for register, value in ((0x11 + 2 * pin, high), (0x10 + 2 * pin, low)):
        ioapic.write(0, 4, register)
        ioapic.write(0x10, 4, value)


def get(ioapic, pin):
    ioapic.write(0, 4, 0x10 + 2 * pin)
    return ioapic.read(0x10, 4)


def test_identity_and_version(ioapic):
    ioapic.write(0, 4, 1)
    assert ioapic.read(0x10, 4) == 0x170020
    assert get(ioapic, 23) == 0x10000
    ioapic.write(0, 4, 0x40)
    assert ioapic.read(0x10, 4) == 0


def test_edge_fires_once(ioapic, lapic):
    put(ioapic, 5, 0x45)
    line = ioapic.line(5)
    line.set(True)
    assert lapic.acknowledge() == 0x45
    lapic.write(0xB0, 4, 0)
    assert not lapic.pending()
    line.set(False)
    line.set(True)
    assert lapic.acknowledge() == 0x45


def test_edge_while_masked_is_kept(ioapic, lapic):
    put(ioapic, 5, 0x10045)
    ioapic.line(5).pulse()
    assert not lapic.pending()
    put(ioapic, 5, 0x45)
    assert lapic.acknowledge() == 0x45


def test_level_is_repeated_until_served(ioapic, lapic):
    put(ioapic, 6, 0x8046)
    line = ioapic.line(6)
    line.set(True)
    assert get(ioapic, 6) & 0x4000, "remote IRR"
    assert lapic.acknowledge() == 0x46
    lapic.write(0xB0, 4, 0)
    assert lapic.acknowledge() == 0x46, "the line is still up"
    line.set(False)
    lapic.write(0xB0, 4, 0)
    assert not lapic.pending() and not get(ioapic, 6) & 0x4000


def test_message_bus_encodes_msi():
    sent = []
    bus = MessageBus(lambda address, data: sent.append((address, data)) or True)
    ioapic = Ioapic(bus)
    put(ioapic, 4, 0x8800 | 0x31, 3 << 24)  # level, logical
    ioapic.line(4).set(True)
    assert sent == [(0xFEE00000 | 3 << 12 | 4, 0xC031)]
    bus.eoi_listeners[0].end_of_interrupt(0x31)
    assert len(sent) == 2


def test_unknown_destination_is_retried_not_lost(ioapic, lapic):
    put(ioapic, 7, 0x8047, 9 << 24)
    ioapic.line(7).set(True)
    assert not get(ioapic, 7) & 0x4000
    put(ioapic, 7, 0x8047, 0)
    assert lapic.acknowledge() == 0x47
