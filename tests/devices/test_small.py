"""The devices that are one register: power, panic, keyboard reset."""

from ringzero.devices.chips.i8042 import I8042
from ringzero.devices.chips.power import Power
from ringzero.devices.chips.pvpanic import Pvpanic


def test_power_off_needs_type_and_enable():
    events = []
    power = Power(lambda: events.append("off"), lambda: events.append("reboot"))
    power.write(0, 1, 5 << 2)
    power.write(0, 1, 3 << 2 | 0x20)
    assert events == []
    power.write(0, 1, 5 << 2 | 0x20)
    assert events == ["off"]
    assert power.read(0, 1) == 5 << 2, "SLP_EN reads as zero (ACPI 6.5 section 4.8.3.7)"
    assert power.read(1, 1) == 0


def test_reset_register_takes_one_value():
    events = []
    power = Power(lambda: events.append("off"), lambda: events.append("reboot"))
    power.write(2, 1, 0)
    power.write(2, 1, 6)
    assert events == []
    power.write(2, 1, 1)
    assert events == ["reboot"]


def test_pvpanic():
    events = []
    panic = Pvpanic(lambda: events.append("panic"))
    assert panic.read(0, 1) == 3
    panic.write(0, 1, 2)
    assert events == []
    panic.write(0, 1, 1)
    assert events == ["panic"]


def test_i8042_reset():
    events = []
    keyboard = I8042(lambda: events.append("reboot"))
    assert keyboard.read(0, 1) & 2 == 0, "kb_wait() in Linux waits for the input buffer"
    keyboard.write(0, 1, 0xD1)
    keyboard.write(0, 1, 0xFE)
    assert events == ["reboot"]
