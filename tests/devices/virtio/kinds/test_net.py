"""The network device, as section 5.1 has it, with a backend that keeps frames."""

import pytest

from ringzero.core.frames import Frame
from ringzero.devices.virtio.kinds.net import BACKLOG, HEADER, Net, NetState
from ringzero.errors import StateError
from tests.devices.virtio.driver import EVENT_IDX, Driver

MAC = bytes.fromhex("02123456789a")
FEATURES = 1 << 3 | 1 << 5 | 1 << 16
FRAME = bytes(range(64))


class Wire:
    """Fetches at once; `rooms` counts what it was woken for."""

    def __init__(self):
        self.frames = []
        self.rooms = 0

    def connections(self):
        return ()

    def wake(self):
        self.rooms += 1
        while self.device.fetch(lambda frame: self.frames.append(frame.kept()), 64):
            pass

    @property
    def data(self):
        return [frame.data() for frame in self.frames]


@pytest.fixture(params=[0, EVENT_IDX])
def rig(request):
    wire = Wire()
    device = wire.device = Net(MAC, wire)
    return wire, device, Driver(device, FEATURES | request.param).start()


def config(driver):
    return b"".join(driver.read(0x100 + 4 * n).to_bytes(4, "little") for n in range(3))


def test_configuration(rig):
    _, device, driver = rig
    assert config(driver) == MAC + bytes.fromhex("0000 0100 dc05")
    assert device.device_id == 1
    generation = driver.read(0xFC)
    device.set_link(True)
    assert config(driver)[6] == 1 and driver.read(0xFC) != generation
    assert driver.acknowledge() == 2
    device.set_link(True)
    assert driver.acknowledge() == 0, "no news"


def test_frames_out(rig):
    wire, device, driver = rig
    driver.add(1, readable=[bytes(12), FRAME])
    driver.add(1, readable=[bytes(12) + FRAME[:20], FRAME[20:]])
    assert wire.data == [FRAME, FRAME] and driver.used(1) == [0, 0]
    assert device.sent == 2


@pytest.mark.parametrize("size", [0, 5, 12, 12 + 13, 12 + 1519, 70000])
def test_frames_that_are_none(rig, size):
    wire, device, driver = rig
    driver.add(1, readable=[bytes(size)])
    driver.add(1, writable=[100])
    assert not wire.frames and len(driver.used(1)) == 2 and device.dropped == 2
    assert driver.transport.failure is None


def test_frames_in(rig):
    _, device, driver = rig
    first, second = (driver.add(0, writable=[12, 1518]) for _ in range(2))
    assert device.deliver([Frame(FRAME), Frame(bytes(1518))]) == 2
    assert driver.used(0) == [12 + 64, 12 + 1518]
    assert driver.memory.read(first[0], 12) == HEADER.pack(0, 0, 0, 0, 0, 0, 1)
    assert driver.memory.read(first[1], 64) == FRAME
    assert driver.edges >= 1 and second


def test_frames_that_no_driver_expects(rig):
    _, device, driver = rig
    driver.add(0, writable=[12, 1518])
    for size in (0, 13, 1519, 65536):
        assert device.deliver([Frame(bytes(size))]) == 1, "taken, and dropped"
    assert driver.used(0) == [] and device.dropped == 4
    fresh = Net(MAC, Wire())
    Driver(fresh)
    assert fresh.deliver([Frame(FRAME)]) == 1 and fresh.dropped == 1, "no driver"


def test_a_buffer_that_is_too_small_comes_back_empty(rig):
    _, device, driver = rig
    driver.add(0, writable=[20])
    driver.add(0, writable=[12, 1518])
    for _ in range(2):
        device.deliver([Frame(FRAME)])
    assert driver.used(0) == [0, 76] and device.dropped == 1


def test_a_guest_without_buffers_presses_back(rig):
    wire, device, driver = rig
    taken = 0
    before = wire.rooms
    while device.deliver([Frame(FRAME)]):
        taken += 1
    assert taken == BACKLOG and wire.rooms == before
    for _ in range(4):
        driver._free = 0x20000
        for _ in range(32):
            driver.add(0, writable=[12, 100], notify=False)
        driver.notify(0)
        driver.used(0)
    assert wire.rooms == before + 1 and device.deliver([Frame(FRAME)]) == 1


def test_a_restored_device_tells_the_link_of_its_own(rig):
    _, device, driver = rig
    device.set_link(True)
    device.deliver([Frame(FRAME)])
    driver.acknowledge()
    driver.transport.pause()
    saved = driver.transport.save(), device.save()
    assert saved[1] == NetState(MAC, True, False)
    device.set_link(False)
    assert config(driver)[6] == 1, "nothing moves while it stands still"
    driver.transport.restore(saved[0])
    device.restore(saved[1])
    device.renew(b"\2" + bytes(5))
    driver.transport.resume()
    assert config(driver)[:7] == b"\2" + bytes(6)
    assert driver.acknowledge() == 2
    driver.add(0, writable=[12, 1518])
    assert driver.used(0) == [], "frames on their way are lost"


def test_states_that_are_none():
    with pytest.raises(StateError):
        Net(MAC, Wire()).restore(NetState(b"short", False))


def quiet_rig():
    wire = Wire()
    wire.wake = lambda: None
    device = wire.device = Net(MAC, wire)
    return wire, device, Driver(device, FEATURES).start()


def leave(wire, driver, count=1, size=64):
    for _ in range(count):
        driver.add(1, readable=[bytes(12), bytes(size)])
    edges = driver.edges
    while wire.device.fetch(lambda frame: None, 64, coalesce=True):
        pass
    return driver.edges - edges


def test_one_interrupt_for_an_answer():
    wire, device, driver = quiet_rig()
    driver.add(0, writable=[12, 1518])
    assert leave(wire, driver) == 0 and driver.used(1) == [0], "it has its buffer back"
    device.deliver([Frame(FRAME)])
    assert driver.edges == 1 and driver.used(0) == [76]
    driver.acknowledge()
    device.settle()
    assert driver.edges == 1, "that was all"


def test_a_frame_that_has_left_is_told_of_at_last():
    wire, device, driver = quiet_rig()
    assert leave(wire, driver) == 0
    device.settle()
    assert driver.edges == 1
    driver.acknowledge()
    assert leave(wire, driver) == 0
    driver.transport.pause()
    assert driver.edges == 2, "a copy owes nothing"
    driver.transport.resume()
    wire, device, driver = quiet_rig()
    assert leave(wire, driver) == 0
    assert leave(wire, driver) == 1, "never for two"


def test_a_long_frame_and_several_are_told_of_at_once():
    wire, _, driver = quiet_rig()
    assert leave(wire, driver, count=3) == 1
    driver.acknowledge()
    driver.used(1)
    device = Net(MAC, wire, mtu=9000)
    wire.device = device
    driver = Driver(device, FEATURES).start()
    assert leave(wire, driver, size=4000) == 1
