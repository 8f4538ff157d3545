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


# ---- pairs of queues ----------------------------------------------------------------------

MQ, CONTROL = 1 << 22, 1 << 17


def flow(back=False, number=0):
    """A datagram of IPv4, or its answer."""
    ends = [(b"\x0a\0\2\x0f", (5000 + number).to_bytes(2, "big")), (b"\x0a\0\2\2", b"\0\x35")]
    (source, sport), (target, tport) = reversed(ends) if back else ends
    return bytes(12) + b"\x08\0\x45" + bytes(11) + source + target + sport + tport + bytes(8)


def pairs_rig(pairs=3, features=MQ | CONTROL, wire=None):
    wire = wire or Wire()
    device = wire.device = Net(MAC, wire, pairs=pairs)
    return wire, device, Driver(device, FEATURES | features).start()


def order(driver, pairs, queue=6):
    (answer,) = driver.add(queue, readable=[bytes((4, 0)), pairs.to_bytes(2, "little")],
                           writable=[1])  # fmt: skip
    driver.used(queue)
    return driver.memory.read(answer, 1)


def test_pairs_are_offered_where_there_are_several():
    _, device, driver = pairs_rig()
    assert config(driver)[8:10] == b"\3\0" and device.features & MQ
    assert not Net(MAC, Wire()).features & MQ


def test_frames_out_by_any_pair_and_answers_by_the_same():
    wire, device, driver = pairs_rig()
    assert order(driver, 3) == b"\0"
    for pair in range(3):
        driver.add(2 * pair + 1, readable=[bytes(12), flow(number=pair)])
        for _ in range(2):
            driver.add(2 * pair, writable=[12, 1518])
    assert wire.data == [flow(number=n) for n in range(3)]
    assert [driver.used(2 * n + 1) for n in range(3)] == [[0], [0], [0]]
    device.deliver([Frame(flow(True, n)) for n in (2, 1, 9, 2)])
    size = 12 + len(flow())
    assert [driver.used(2 * n) for n in range(3)] == [[size], [size], [size, size]]


def test_a_pair_that_the_driver_does_not_use():
    wire, device, driver = pairs_rig()
    driver.add(3, readable=[bytes(12), FRAME])
    driver.add(0, writable=[12, 1518])
    assert not wire.frames, "one pair is in use until the driver says so"
    assert order(driver, 2) == b"\0" and wire.data == [FRAME], "what waited goes out"
    driver.add(3, readable=[bytes(12), flow()])
    device.deliver([Frame(flow(True))])
    assert driver.used(0) == [], "it waits for buffers of the other pair"
    assert order(driver, 1) == b"\0"
    driver.notify(0)
    assert driver.used(0) == [12 + len(flow())], "and then has the first's"


@pytest.mark.parametrize("pairs", [0, 4, 0x8000])
def test_numbers_of_pairs_that_are_none(pairs):
    _, _, driver = pairs_rig()
    assert order(driver, pairs) == b"\1"
    assert driver.transport.failure is None


def test_a_driver_that_takes_one_pair_has_its_control_queue_behind_it():
    wire, _, driver = pairs_rig(features=CONTROL)
    assert order(driver, 2, queue=2) == b"\1", "it has not taken the feature"
    (answer,) = driver.add(2, readable=[bytes((3, 0))], writable=[1])
    assert driver.memory.read(answer, 1) == b"\0"
    driver.add(3, readable=[bytes(12), FRAME])
    assert not wire.frames and driver.transport.failure is None


def test_no_pair_starves_the_others():
    wire = Wire()
    wire.wake = lambda: None
    _, device, driver = pairs_rig(wire=wire)
    order(driver, 3)
    for number in range(6):
        for pair in range(3):
            driver.add(2 * pair + 1, readable=[bytes(12), flow(number=8 * pair + number)],
                       notify=False)  # fmt: skip
    order_seen = []
    for _ in range(3):
        assert device.fetch(lambda frame: order_seen.append(frame.head[35] >> 3 & 3), 2)
    assert len(set(order_seen)) == 3, "each had its turn within three batches"
    while device.fetch(lambda frame: None, 64):
        pass
    assert [len(driver.used(2 * n + 1)) for n in range(3)] == [6, 6, 6]
    woken = []
    wire.wake = lambda: woken.append(1)
    for pair in range(3):
        driver.add(2 * pair + 1, readable=[bytes(12), FRAME])
    assert len(woken) == 3, "each asks to be notified"


def test_a_frame_that_has_left_by_one_pair_is_told_of_with_another():
    wire = Wire()
    wire.wake = lambda: None
    _, device, driver = pairs_rig(wire=wire)
    order(driver, 2)
    driver.acknowledge()
    edges = driver.edges
    for pair in range(2):
        driver.add(2 * pair + 1, readable=[bytes(12), FRAME])
        device.fetch(lambda frame: None, 64, coalesce=True)
        assert driver.edges == edges + pair
    assert [driver.used(2 * n + 1) for n in range(2)] == [[0], [0]]


def test_pairs_are_saved_and_a_reset_leaves_one():
    wire, device, driver = pairs_rig()
    order(driver, 3)
    driver.transport.pause()
    saved = driver.transport.save(), device.save()
    assert saved[1].pairs == 3
    driver.write(0x70, 0)
    assert device.save().pairs == 1
    driver.transport.restore(saved[0])
    device.restore(saved[1])
    driver.transport.resume()
    driver.add(5, readable=[bytes(12), FRAME])
    assert wire.data == [FRAME]
    for pairs in (0, 4):
        with pytest.raises(StateError, match="pairs of queues"):
            device.restore(NetState(MAC, True, pairs=pairs))


def test_a_state_of_one_pair_in_a_device_with_several():
    _, old, driver = pairs_rig(pairs=1, features=CONTROL)
    driver.transport.pause()
    saved = driver.transport.save(), old.save()
    wire = Wire()
    device = wire.device = Net(MAC, wire, pairs=3)
    fresh = Driver(device, memory=driver.memory)
    fresh.transport.restore(saved[0])
    device.restore(saved[1])
    fresh.transport.resume()
    fresh.queues, fresh._free = driver.queues, driver._free
    fresh.add(1, readable=[bytes(12), FRAME])
    assert wire.data == [FRAME]
    (answer,) = fresh.add(2, readable=[bytes((3, 0))], writable=[1])
    assert fresh.memory.read(answer, 1) == b"\0"
