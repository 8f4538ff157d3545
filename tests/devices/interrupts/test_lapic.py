"""Local APIC against the Intel SDM vol. 3A, chapter 11 (sections named per test)."""

import pytest

from ringzero.devices.interrupts.lapic import ApicBus, Lapic

TSC_HZ = 2_000_000_000  # two TSC ticks per timer tick


class System:
    def __init__(self, count=1):
        self.tsc = 1000
        self.bus = ApicBus()
        self.lapics = [Lapic(i, self.bus, lambda: self.tsc, TSC_HZ) for i in range(count)]
        self.wakes = [0] * count
        for number, lapic in enumerate(self.lapics):
            lapic.on_change(lambda n=number: self.wake(n))
            lapic.write(0xF0, 4, 0x1FF)

    def wake(self, number):
        self.wakes[number] += 1


@pytest.fixture
def system():
    return System()


@pytest.fixture
def apic(system):
    return system.lapics[0]


def x2apic(lapic):
    assert lapic.write_msr(0x1B, lapic.read_msr(0x1B) | 0x400)


def test_reset_values_11_4_7_1():
    lapic = Lapic(3, ApicBus(), lambda: 0, TSC_HZ)
    assert lapic.read(0x20, 4) == 3 << 24
    assert lapic.read(0x30, 4) & 0xFF == 0x14
    assert lapic.read(0xE0, 4) == 0xFFFFFFFF
    assert lapic.read(0xF0, 4) == 0xFF
    assert all(lapic.read(0x320 + 16 * i, 4) == 0x10000 for i in range(6))
    assert lapic.read_msr(0x1B) == 0xFEE00800
    assert Lapic(0, ApicBus(), lambda: 0, TSC_HZ).read_msr(0x1B) == 0xFEE00900


def test_priority_and_nesting_11_8(system, apic):
    bus = system.bus
    for vector in (0x31, 0x52, 0x55):
        bus.send([apic], 0, vector)
    assert apic.pending()
    assert apic.acknowledge() == 0x55
    # 0x52 is of the class in service: it has to wait.
    assert not apic.pending() and apic.acknowledge() is None
    assert apic.read(0xA0, 4) == 0x50
    bus.send([apic], 0, 0x61)
    assert apic.acknowledge() == 0x61
    apic.write(0xB0, 4, 0)
    assert not apic.pending()
    apic.write(0xB0, 4, 0)
    assert apic.acknowledge() == 0x52
    apic.write(0xB0, 4, 0)
    apic.set_task_priority(3)
    assert apic.read(0x80, 4) == 0x30
    assert not apic.pending(), "class 3 is masked by the task priority"
    wakes = system.wakes[0]
    apic.set_task_priority(2)
    assert apic.acknowledge() == 0x31 and system.wakes[0] > wakes


def test_irr_isr_tmr_bits(system, apic):
    system.bus.send([apic], 0, 0x45, level=True)
    assert apic.read(0x200 + 0x20, 4) == 1 << 5
    assert apic.read(0x180 + 0x20, 4) == 1 << 5
    apic.acknowledge()
    assert apic.read(0x200 + 0x20, 4) == 0
    assert apic.read(0x100 + 0x20, 4) == 1 << 5
    system.bus.send([apic], 0, 0x45)
    assert apic.read(0x180 + 0x20, 4) == 0


def test_eoi_broadcast_only_for_level(system, apic):
    seen = []
    system.bus.eoi_listeners.append(
        type("L", (), {"end_of_interrupt": lambda s, v: seen.append(v)})()
    )
    system.bus.send([apic], 0, 0x40)
    apic.acknowledge()
    apic.write(0xB0, 4, 0)
    system.bus.send([apic], 0, 0x41, level=True)
    apic.acknowledge()
    apic.write(0xB0, 4, 0)
    assert seen == [0x41]


def test_software_disable_masks_lvt_and_drops_messages_11_4_7_2(system, apic):
    apic.write(0x320, 4, 0x40)
    apic.write(0xF0, 4, 0xFF)
    assert apic.read(0x320, 4) == 0x10040
    apic.write(0x320, 4, 0x40)
    assert apic.read(0x320, 4) == 0x10040, "unmasking needs the APIC enabled"
    system.bus.send([apic], 0, 0x40)
    assert not apic.pending() and apic.read(0x220, 4) == 0


def test_one_shot_timer_11_5_4(system, apic):
    apic.write(0x3E0, 4, 0xB)  # divide by 1
    apic.write(0x320, 4, 0x40)
    apic.write(0x380, 4, 500)
    assert apic.deadline() == 1000 + 1000
    system.tsc += 400
    assert apic.read(0x390, 4) == 300
    apic.expire()
    assert not apic.pending(), "too early"
    system.tsc += 600
    apic.expire()
    assert apic.acknowledge() == 0x40
    assert apic.deadline() is None and apic.read(0x390, 4) == 0


def test_divide_configuration(apic):
    for code, divisor in ((0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)):
        apic.write(0x3E0, 4, code)
        apic.write(0x380, 4, 10)
        assert apic.deadline() == 1000 + 10 * divisor * 2


def test_periodic_timer_keeps_its_phase(system, apic):
    apic.write(0x3E0, 4, 0xB)
    apic.write(0x320, 4, 0x20040)
    apic.write(0x380, 4, 500)
    system.tsc = 5300  # late by several periods
    apic.expire()
    assert apic.acknowledge() == 0x40
    assert apic.deadline() == 6000
    apic.write(0x380, 4, 0)
    assert apic.deadline() is None


def test_masked_timer_counts_but_does_not_interrupt(system, apic):
    apic.write(0x320, 4, 0x10040)
    apic.write(0x380, 4, 1)
    system.tsc += 1000
    apic.expire()
    assert not apic.pending()


def test_tsc_deadline_11_5_4_1(system, apic):
    assert apic.write_msr(0x6E0, 5000)
    assert apic.read_msr(0x6E0) == 0, "ignored outside its mode"
    apic.write(0x320, 4, 0x40040)
    assert apic.write_msr(0x6E0, 5000)
    assert apic.read_msr(0x6E0) == apic.deadline() == 5000
    apic.write(0x380, 4, 77)
    assert apic.deadline() == 5000 and apic.read(0x390, 4) == 0
    system.tsc = 5000
    apic.expire()
    assert apic.acknowledge() == 0x40 and apic.read_msr(0x6E0) == 0
    apic.write_msr(0x6E0, 9000)
    apic.write(0x320, 4, 0x00040)
    assert apic.deadline() is None, "leaving the mode disarms"


def test_x2apic_registers_11_12(apic):
    assert apic.read_msr(0x802) is None, "x2APIC registers need x2APIC mode"
    x2apic(apic)
    assert apic.read(0x20, 4) == (1 << 64) - 1, "no MMIO in x2APIC mode"
    assert apic.read_msr(0x802) == 0
    assert apic.read_msr(0x80D) == 1
    assert apic.read_msr(0x80E) is None and not apic.write_msr(0x80E, 0)
    assert apic.read_msr(0x831) is None
    assert not apic.write_msr(0x80B, 1), "EOI takes only 0"
    assert not apic.write_msr(0x808, 1 << 32)
    assert not apic.write_msr(0x802, 0), "the identifier is read-only"


def test_mode_switches_11_12_5(apic):
    assert not apic.write_msr(0x1B, 0xFEE00500), "x2APIC without enable"
    x2apic(apic)
    assert not apic.write_msr(0x1B, 0xFEE00900), "back to xAPIC without disable"
    assert apic.write_msr(0x1B, 0xFEE00100)
    assert not apic.write_msr(0x1B, 0xFEE00D00), "disabled to x2APIC at once"
    assert apic.write_msr(0x1B, 0xFEE00900)
    assert not apic.write_msr(0x1B, 0xFED00900), "the base does not move"


def test_interprocessor_interrupts():
    system = System(3)
    a = system.lapics[0]
    a.write(0x310, 4, 1 << 24)
    a.write(0x300, 4, 0x4044)

    def take():
        vectors = [lapic.acknowledge() for lapic in system.lapics]
        for lapic in system.lapics:
            if lapic.x2apic:
                lapic.write_msr(0x80B, 0)
            else:
                lapic.write(0xB0, 4, 0)
        return vectors

    assert take() == [None, 0x44, None]
    a.write(0x300, 4, 0x84045)  # all including self
    assert take() == [0x45] * 3
    a.write(0x300, 4, 0xC4056)
    assert take() == [None, 0x56, 0x56]
    a.write(0x300, 4, 0x44067)
    assert take() == [0x67, None, None]
    for lapic in system.lapics:
        x2apic(lapic)
    a.write_msr(0x830, 2 << 32 | 0x78)
    assert take() == [None, None, 0x78]
    a.write_msr(0x830, 0b110 << 32 | 0x800 | 0x89)  # logical, cluster 0
    assert take() == [None, 0x89, 0x89]
    assert a.write_msr(0x83F, 0x9A) and take() == [0x9A, None, None]
    a.write_msr(0x830, 0xFFFFFFFF << 32 | 0xAB)
    assert take() == [0xAB] * 3


def test_logical_destinations_11_6_2_2():
    system = System(2)
    a, b = system.lapics
    a.write(0xD0, 4, 1 << 24)
    b.write(0xD0, 4, 2 << 24)
    assert system.bus.matching(2, True) == [b]
    assert system.bus.matching(3, True) == [a, b]
    for lapic in (a, b):
        lapic.write(0xE0, 4, 0x0FFFFFFF)
    a.write(0xD0, 4, 0x11 << 24)
    b.write(0xD0, 4, 0x21 << 24)
    assert system.bus.matching(0x21, True) == [b]


def test_lowest_priority_takes_the_idle_one():
    system = System(2)
    system.lapics[0].set_task_priority(4)
    system.bus.send(list(system.lapics), 1, 0x90)
    assert not system.lapics[0].pending() and system.lapics[1].pending()


def test_init_and_startup():
    system = System(2)
    a, b = system.lapics
    events = []
    b.on_init = lambda: events.append("init")
    b.on_startup = events.append
    a.on_init = lambda: events.append("self")
    a.write(0x310, 4, 1 << 24)
    a.write(0x300, 4, 0xC500)
    a.write(0x300, 4, 0x8500)  # level de-assert does nothing
    a.write(0x300, 4, 0x4608)
    assert events == ["init", 8]
    assert b.read(0xF0, 4) == 0xFF
    a.write(0x300, 4, 0x84500)
    assert "self" not in events


def test_nmi(system, apic):
    system.bus.send([apic], 4, 0)
    assert apic.take_nmi() and not apic.take_nmi()


def test_illegal_vectors_11_5_3(apic):
    apic.write(0x370, 4, 0xFE)
    apic.write(0x300, 4, 0x40003)
    assert apic.read(0x280, 4) == 0, "errors show after a write to the register"
    apic.write(0x280, 4, 0)
    assert apic.read(0x280, 4) == 0x20
    assert apic.acknowledge() == 0xFE
