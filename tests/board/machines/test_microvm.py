import pytest

from ringzero.board import microvm_map as memmap
from ringzero.board.contract import BOARDS, BoardEvents, BoardParts
from ringzero.core.irq import IrqLine
from ringzero.core.memory import GuestMemory
from ringzero.devices.virtio.kinds.block import Block
from ringzero.devices.virtio.kinds.console import Console, ConsolePort
from ringzero.devices.virtio.kinds.rng import Rng
from ringzero.errors import DeviceError
from tests.devices.virtio.kinds.test_block import MemoryDisk


def build(**more):
    memory = GuestMemory(memmap.ram_layout(32 << 20))
    events = []
    told = BoardEvents(
        *(lambda name=name: events.append(name) for name in ("off", "reboot", "panic"))
    )
    parts = {
        "cpus": 2,
        "memory": memory,
        "clock": lambda: 1000,
        "counter_hz": 10**9,
        "events": told,
        "serial": lambda data: events.append(data),
        "devices": {
            "console": Console([ConsolePort("c", lambda data: None)]),
            "rng": Rng(),
            "disk0": Block(MemoryDisk()),
        },
    }
    return BOARDS.get("microvm")(BoardParts(**{**parts, **more})), events


def test_ports_reach_their_devices():
    board, events = build()
    board.pio.write(0x3F8, 1, 65)
    board.pio.write(0x600, 1, 0x34)
    board.pio.write(0x602, 1, 1)
    board.pio.write(0x64, 1, 0xFE)
    board.pio.write(0x505, 1, 1)
    assert events == [b"A", "off", "reboot", "reboot", "panic"]
    assert board.pio.read(0x70, 1) == 0xFF
    assert board.pio.read(0xCF8, 4) == 0xFFFFFFFF and board.pio.unclaimed == 1


def test_virtio_windows_in_order():
    board, _ = build()
    seen = [board.mmio.read(memmap.VIRTIO_BASE + n * 0x1000 + 8, 4) for n in range(4)]
    assert seen == [3, 4, 2, 0xFFFFFFFF]


def test_each_vcpu_sees_its_own_local_apic():
    board, _ = build()
    for processor in board.processors:
        assert processor.mmio.read(0xFEE00020, 4) == processor.index << 24
        assert processor.msrs.read(0x1B) & 0x100 == (0x100 if processor.index == 0 else 0)
        assert processor.mmio.read(memmap.VIRTIO_BASE, 4) == 0x74726976
        assert processor.msrs.read(0x4B564D01) == 0
        assert processor.msrs.read(0x12345) is None
    assert board.mmio.find(0xFEE00020) is None


def test_device_interrupt_arrives_at_the_local_apic():
    board, _ = build()
    lapic = board.processors[1].interrupts
    lapic.write(0xF0, 4, 0x1FF)
    for register, value in ((0x10 + 2 * 4 + 1, 1 << 24), (0x10 + 2 * 4, 0x44)):
        board.mmio.write(memmap.IOAPIC_BASE, 4, register)
        board.mmio.write(memmap.IOAPIC_BASE + 0x10, 4, value)
    board.serial.push(b"x")
    board.pio.write(0x3F9, 1, 1)
    assert lapic.acknowledge() == 0x44


def test_engine_with_its_own_apics():
    sent = []
    board, _ = build(messages=lambda address, data: sent.append((address, data)) or True)
    assert "lapic0" not in board.parts and "kvmclock" not in board.parts
    for register, value in ((0x10 + 2 * 4, 0x8044),):
        board.mmio.write(memmap.IOAPIC_BASE, 4, register)
        board.mmio.write(memmap.IOAPIC_BASE + 0x10, 4, value)
    board.serial.push(b"x")
    board.pio.write(0x3F9, 1, 1)
    assert sent == [(0xFEE00000, 0xC044)]
    board.end_of_interrupt(0x44)
    assert len(sent) == 2, "the line is still up"


def test_stateful_names_every_part_once():
    board, _ = build()
    names = [name for name, _ in board.stateful()]
    assert len(names) == len(set(names))
    assert {
        "lapic0",
        "lapic1",
        "ioapic",
        "serial",
        "console",
        "console.device",
        "disk0.device",
    } <= set(names)


def test_interrupt_lines_run_out_with_a_message():
    board, _ = build()
    with pytest.raises(DeviceError, match="interrupt lines"):
        for number in range(30):
            board.add(f"more{number}", Rng())


def test_names_are_unique():
    board, _ = build()
    with pytest.raises(DeviceError):
        board.add("rng", Rng())


def test_the_power_button_is_an_edge_of_its_own_interrupt():
    board, _ = build()
    levels, asked = [], []

    def line_of(gsi):
        asked.append(gsi)
        return IrqLine(levels.append)

    board.irq_line_of = line_of
    assert board.press_power_button()
    assert (asked, levels) == ([memmap.BUTTON_GSI], [True, False])
