import pytest

from ringzero.core.bus import MEMO_LIMIT, Bus, MsrBus
from ringzero.errors import DeviceError


class Recorder:
    def __init__(self, value=0):
        self.value = value
        self.calls = []

    def read(self, offset, width):
        self.calls.append(("r", offset, width))
        return self.value

    def write(self, offset, width, value):
        self.calls.append(("w", offset, width, value))

    def read_msr(self, index):
        return self.value

    def write_msr(self, index, value):
        return value != 13


def test_offsets_not_addresses_and_masks():
    bus, device = Bus("b"), Recorder(0x1234)
    attachment = bus.attach("d", 0x100, 0x10, device)
    assert bus.read(0x104, 1) == 0x34
    bus.write(0x10E, 2, 7)
    assert device.calls == [("r", 4, 1), ("w", 14, 2, 7)]
    assert (attachment.reads, attachment.writes) == (1, 1)


def test_unclaimed():
    bus = Bus("b")
    bus.attach("d", 0x100, 0x10, Recorder())
    assert bus.read(0x10E, 4) == 0xFFFFFFFF
    assert bus.read(0xFF, 1) == 0xFF
    bus.write(0x110, 1, 0)
    assert bus.unclaimed == 3


@pytest.mark.parametrize("base", [0xF1, 0x100, 0x108, 0x10F])
def test_overlaps_are_refused(base):
    bus = Bus("b")
    bus.attach("d", 0x100, 0x10, Recorder())
    with pytest.raises(DeviceError, match="overlaps"):
        bus.attach("e", base, 0x10, Recorder())


def test_parent():
    parent, own, common = Bus("p"), Recorder(1), Recorder(2)
    child = Bus("c", parent=parent)
    child.attach("own", 0x100, 0x10, own)
    parent.attach("common", 0x200, 0x10, common)
    assert child.read(0x100, 1) == 1 and child.read(0x200, 1) == 2
    assert parent.read(0x100, 1) == 0xFF


def test_msrs():
    bus = MsrBus("m")
    attachment = bus.attach("d", (0x10, 0x12), Recorder(5))
    assert bus.read(0x10) == 5 and bus.read(0x11) is None
    assert bus.write(0x12, 1) and not bus.write(0x12, 13) and not bus.write(0x11, 0)
    assert bus.unclaimed == {0x11: 2}
    assert (attachment.reads, attachment.writes) == (1, 2)
    with pytest.raises(DeviceError):
        bus.attach("e", (0x12,), Recorder())


def test_every_address_of_a_large_range():
    bus = Bus("b")
    bus.attach("d", 0, 3 * MEMO_LIMIT, Recorder(7))
    assert all(bus.read(address, 1) == 7 for address in range(3 * MEMO_LIMIT))
    assert bus.read(3 * MEMO_LIMIT, 1) == 0xFF


def test_values_for_one_register_go_at_once_where_the_device_takes_them_so():
    class Register:
        def __init__(self):
            self.taken = []

        def read(self, offset, width):
            return 0

        def write(self, offset, width, value):
            self.taken.append((offset, width, value))

    bus, one, other = Bus("test"), Register(), Register()
    bus.attach("one", 0x10, 4, one)
    stream = []
    attachment = bus.attach("other", 0x20, 4, other, lambda *what: stream.append(what))
    bus.write_all(0x11, 1, [1, 2])
    bus.write_all(0x21, 1, [3, 4])
    bus.write_all(0x40, 1, [5])
    assert one.taken == [(1, 1, 1), (1, 1, 2)]
    assert stream == [(1, 1, [3, 4])] and not other.taken and attachment.writes == 2
    assert bus.unclaimed == 1
