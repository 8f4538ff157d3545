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
