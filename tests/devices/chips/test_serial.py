import random
from functools import partial

import pytest

from ringzero.core.irq import IrqLine
from ringzero.devices.chips.serial import Serial


class Port:
    def __init__(self):
        self.out = bytearray()
        self.levels = []
        self.line = IrqLine(self.levels.append)
        self.serial = Serial(self.line, self.out.extend)


@pytest.fixture
def port():
    return Port()


def test_transmits_at_once(port):
    for byte in b"hello":
        port.serial.write(0, 1, byte)
    assert port.out == b"hello"
    assert port.serial.read(5, 1) & 0x60 == 0x60


def test_receive_interrupt_and_fifo_order(port):
    port.serial.write(2, 1, 0x01)  # FIFO on, trigger level 1
    port.serial.write(1, 1, 0x01)
    assert not port.line.level
    assert port.serial.push(b"abc") == 3
    assert port.line.level
    assert port.serial.read(2, 1) == 0xC4  # received data, FIFOs enabled
    assert bytes(port.serial.read(0, 1) for _ in range(3)) == b"abc"
    assert not port.line.level
    assert port.serial.read(2, 1) == 0xC1
    assert port.serial.read(5, 1) & 1 == 0


def test_below_trigger_level_is_a_timeout(port):
    port.serial.write(2, 1, 0xC1)
    port.serial.write(1, 1, 0x01)
    port.serial.push(b"a")
    assert port.serial.read(2, 1) & 0xF == 0xC
    port.serial.push(b"b" * 13)
    assert port.serial.read(2, 1) & 0xF == 0x4


def test_more_than_the_fifo_waits_and_room_is_told(port):
    told = []
    port.serial.on_room = lambda: told.append(1)
    port.serial.write(2, 1, 0x01)
    data = bytes(range(200)) * 30
    taken = port.serial.push(data)
    assert 16 < taken < len(data)
    got = bytearray()
    while port.serial.read(5, 1) & 1:
        got.append(port.serial.read(0, 1))
    assert got == data[:taken]
    assert told
    assert port.serial.push(b"x") == 1


def test_transmit_interrupt_is_cleared_by_reading_iir(port):
    port.serial.write(1, 1, 0x02)
    assert port.line.level
    assert port.serial.read(2, 1) == 0x02
    assert not port.line.level
    assert port.serial.read(2, 1) == 0x01
    port.serial.write(0, 1, 65)
    assert port.line.level


def test_out2_gates_the_interrupt(port):
    port.serial.write(4, 1, 0)
    port.serial.write(1, 1, 0x02)
    assert not port.line.level
    port.serial.write(4, 1, 8)
    assert port.line.level


def test_divisor_latch_hides_data_and_enable(port):
    port.serial.write(3, 1, 0x80)
    port.serial.write(0, 1, 0x34)
    port.serial.write(1, 1, 0x12)
    assert (port.serial.read(0, 1), port.serial.read(1, 1)) == (0x34, 0x12)
    port.serial.write(3, 1, 0x03)
    assert port.serial.read(1, 1) == 0
    assert port.out == b""


def test_linux_probe_loopback_and_scratch(port):
    """What 8250_port.c autoconfig looks at: IER bits, loopback modem status, IIR FIFO bits."""
    port.serial.write(1, 1, 0x0F)
    assert port.serial.read(1, 1) == 0x0F
    port.serial.write(1, 1, 0)
    port.serial.write(4, 1, 0x10 | 0x0A)  # loop, OUT2, RTS
    assert port.serial.read(6, 1) & 0xF0 == 0x90
    port.serial.write(4, 1, 0)
    port.serial.write(2, 1, 1)
    assert port.serial.read(2, 1) >> 6 == 3
    port.serial.write(7, 1, 0xA5)
    assert port.serial.read(7, 1) == 0xA5


def test_loopback_receives_own_bytes(port):
    port.serial.write(2, 1, 1)
    port.serial.write(4, 1, 0x10)
    for byte in b"xy":
        port.serial.write(0, 1, byte)
    assert port.out == b""
    assert bytes(port.serial.read(0, 1) for _ in range(2)) == b"xy"
    for _ in range(17):
        port.serial.write(0, 1, 1)
    assert port.serial.read(5, 1) & 2, "overrun"
    assert not port.serial.read(5, 1) & 2


def test_what_is_transmitted_at_once(port):
    port.serial.write_all(0, 1, [0x41, 0x142, 0x43])
    assert port.out == b"ABC"
    port.serial.write(3, 1, 0x80)  # the divisor latch lies there now
    port.serial.write_all(0, 1, [0x50, 0x60])
    assert port.serial.read(0, 1) == 0x60 and port.out == b"ABC"


def test_an_interrupt_that_is_switched_off_before_it_is_raised(port):
    port.serial.write(1, 1, 0x02)
    assert port.serial.read(2, 1) == 0x02 and port.levels == [True, False]
    port.serial.write_all(0, 1, b"abc")
    port.serial.write(1, 1, 0x00)
    port.serial.settle()
    assert port.levels == [True, False], "the driver had no more to send"
    port.serial.write(1, 1, 0x02)
    port.serial.read(2, 1)
    port.serial.write_all(0, 1, b"abc")
    port.serial.settle()
    assert port.line.level


class Shown:
    """What status registers are shown to hold, and what a read of one makes of it."""

    def __init__(self, port):
        self.values, self.changed = {}, set()
        for offset in (2, 5, 6):
            port.serial.shadow(offset, partial(self.show, offset))

    def show(self, offset, value, then=None, *, once=False):
        self.values[offset] = value, then
        self.changed.discard(offset)
        if once:
            self.changed.add(offset)


def test_shadows_are_what_reading_gives(port):
    shown = Shown(port)
    rng = random.Random(7)
    for _ in range(3000):
        action = rng.randrange(4)
        if action == 0:
            port.serial.push(bytes(rng.randrange(4)))
        elif action == 1:
            port.serial.read(rng.randrange(8), 1)
        elif action == 2:
            port.serial.write(rng.randrange(8), 1, rng.randrange(256))
        else:
            port.serial.restore(port.serial.save())
        changed = set(shown.changed)
        for offset, (value, then) in list(shown.values.items()):
            if value is None:
                continue
            before = port.serial.save()
            assert port.serial.read(offset, 1) == value
            if offset in changed:
                assert port.serial.read(offset, 1) == then
                port.serial.restore(before)
                port.serial.identified()
                port.serial.settle()
            else:
                assert port.serial.save() == before, "reading what is shadowed changes nothing"


def test_status_that_reading_changes_is_not_shadowed(port):
    shown = Shown(port)
    assert {offset: value for offset, (value, _) in shown.values.items()} == {
        2: 0x01,
        5: 0x60,
        6: 0xB0,
    }
    port.serial.push(b"x")
    assert shown.values[5] == (0x61, None)
    port.serial.write(1, 1, 0x02)
    assert shown.values[2] == (0x02, 0x01) and shown.changed == {2}
    port.serial.identified()
    port.serial.settle()
    assert shown.values[2][0] is None, "its interrupt comes with what is gathered"
    port.serial.write(4, 1, 0x10)  # loopback
    assert {value for value, _ in shown.values.values()} == {None}


def test_an_interrupt_that_was_read_from_a_shadow_is_low_where_the_machine_stands_still(port):
    """A copy's interrupt controller would else take the next one for the one that was read."""
    port.serial.write(1, 1, 0x02)
    assert port.levels == [True]
    port.serial.identified()
    port.serial.pause()
    assert port.levels == [True, False]
    copy = Port()
    copy.serial.restore(port.serial.save())
    copy.serial.write(0, 1, ord("x"))
    assert copy.levels == [True]


def test_what_comes_behind_a_read_from_a_shadow_is_an_edge(port):
    port.serial.write(1, 1, 0x03)
    assert port.levels == [True]
    port.serial.identified()
    port.serial.push(b"x")
    assert port.levels == [True, False, True]


def test_the_reason_of_an_interrupt_is_there_before_the_interrupt():
    """A guest that comes at once, on another thread, reads why, and not that there is nothing."""
    shown, seen = {}, []

    def show(value, quiet=None, *, once=False):
        shown[2] = value

    def interrupt(level):
        if level:
            seen.append(shown[2])

    serial = Serial(IrqLine(interrupt), lambda data: None)
    serial.shadow(2, show)
    serial.write(2, 1, 1)
    serial.write(1, 1, 0x01)
    serial.push(b"x")
    assert seen == [0xC4]
