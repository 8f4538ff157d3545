"""The transport's registers (virtio 1.2 section 4.2.2) as a driver meets them."""

import struct

import pytest

from ringzero.core.state import from_tree, to_tree
from ringzero.devices.virtio.kinds.rng import Rng
from ringzero.devices.virtio.mmio import VirtioMmio
from ringzero.errors import StateError
from tests.devices.virtio.driver import Driver


@pytest.fixture
def driver():
    return Driver(Rng())


def test_identification(driver):
    assert struct.pack("<I", driver.read(0)) == b"virt"
    assert (driver.read(4), driver.read(8)) == (2, 4)
    assert driver.read(0x34) == 64
    driver.write(0x30, 5)
    assert driver.read(0x34) == 0 and driver.read(0x44) == 0
    assert driver.read(0xB0) == driver.read(0xB4) == 0xFFFFFFFF


def test_features_by_halves(driver):
    assert driver.read(0x10) == 1 << 28 | 1 << 29
    driver.write(0x14, 1)
    assert driver.read(0x10) == 1
    driver.write(0x14, 77)
    assert driver.read(0x10) == 0


def test_refuses_unknown_features_and_legacy_drivers(driver):
    for low, high in ((1, 1), (0, 0), (0, 2)):
        driver.write(0x70, 0)
        driver.write(0x70, 3)
        driver.write(0x24, 0)
        driver.write(0x20, low)
        driver.write(0x24, 1)
        driver.write(0x20, high)
        driver.write(0x70, 11)
        assert driver.read(0x70) == 3


def test_notification_before_driver_ok_is_ignored(driver):
    driver.start()
    driver.write(0x70, 0)
    driver.notify(0)
    driver.notify(9)
    assert driver.read(0x70) == 0


def test_queue_fault_needs_reset_and_recovers(driver):
    driver.start()
    driver.memory.write_int(driver.queues[0].available + 2, 2, 500)
    driver.notify(0)
    assert driver.read(0x70) & 64
    assert driver.transport.failure
    assert driver.acknowledge() == 2, "a configuration interrupt tells the driver"
    driver.notify(0)
    driver.queues.clear()
    driver.start()
    assert driver.read(0x70) == 15
    driver.add(0, writable=[4])
    assert driver.used(0) == [4]


def test_bad_queue_address_needs_reset(driver):
    driver.write(0x70, 3)
    driver.write(0x30, 0)
    driver.write(0x84, 0xFF)
    driver.write(0x44, 1)
    assert driver.read(0x70) & 64


def test_interrupt_line_follows_status(driver):
    driver.start()
    driver.add(0, writable=[4])
    driver.add(0, writable=[4])
    assert driver.line.level and driver.edges == 1
    driver.write(0x64, 1)
    assert not driver.line.level
    driver.add(0, writable=[4])
    assert driver.edges == 2


def test_reason_that_comes_before_the_acknowledgement_is_an_edge_of_its_own(driver):
    driver.start()
    driver.add(0, writable=[4])
    seen = driver.read(0x60)
    driver.transport.interrupt_config()
    assert driver.edges == 1
    driver.write(0x64, seen)
    assert driver.edges == 2 and driver.read(0x60) == 2
    driver.write(0x64, 2)
    assert not driver.line.level


def test_reset_takes_everything_back(driver):
    driver.start()
    driver.add(0, writable=[4])
    driver.write(0x70, 0)
    assert not driver.line.level
    assert driver.read(0x60) == driver.read(0x44) == driver.read(0x70) == 0


def test_state_round_trip_mid_work(driver):
    """Buffers that were offered but not served are served after the restore."""
    driver.start()
    driver.add(0, writable=[4])
    driver.add(0, writable=[5], notify=False)
    driver.transport.pause()
    tree = to_tree(driver.transport.save())

    other = Rng()
    transport = VirtioMmio(driver.memory, driver.line, other)
    transport.restore(from_tree(transport.state_type, tree))
    assert to_tree(transport.save()) == tree
    transport.resume()
    assert driver.used(0) == [4, 5]


def test_hostile_state_is_refused(driver):
    driver.start()
    tree = to_tree(driver.transport.save())
    tree["queues"][0]["descriptors"] = 1 << 60
    with pytest.raises(StateError):
        driver.transport.restore(from_tree(driver.transport.state_type, tree))
    tree["queues"] = []
    with pytest.raises(StateError):
        driver.transport.restore(from_tree(driver.transport.state_type, tree))
