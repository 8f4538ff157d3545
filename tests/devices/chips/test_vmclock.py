"""VMClock's page: its layout as Linux has it, what a clone finds changed, the time in it."""

import struct

import pytest

from ringzero.core.irq import IrqLine
from ringzero.core.memory import GuestMemory
from ringzero.devices.chips import vmclock
from ringzero.devices.chips.vmclock import VmClock, VmClockState, period_of

# include/uapi/linux/vmclock-abi.h: name, offset and format of each field of struct vmclock_abi.
LAYOUT = {
    "magic": (0, "<I"),
    "size": (4, "<I"),
    "version": (8, "<H"),
    "counter_id": (10, "B"),
    "time_type": (11, "B"),
    "seq_count": (12, "<I"),
    "disruption_marker": (16, "<Q"),
    "flags": (24, "<Q"),
    "clock_status": (34, "B"),
    "leap_second_smearing_hint": (35, "B"),
    "tai_offset_sec": (36, "<h"),
    "leap_indicator": (38, "B"),
    "counter_period_shift": (39, "B"),
    "counter_value": (40, "<Q"),
    "counter_period_frac_sec": (48, "<Q"),
    "counter_period_esterror_rate_frac_sec": (56, "<Q"),
    "counter_period_maxerror_rate_frac_sec": (64, "<Q"),
    "time_sec": (72, "<Q"),
    "time_frac_sec": (80, "<Q"),
    "time_esterror_nanosec": (88, "<Q"),
    "time_maxerror_nanosec": (96, "<Q"),
    "vm_generation_counter": (104, "<Q"),
}
PAGE = 0x8000
HZ = 2_100_000_000
NOW = 1_790_000_000.25


def parse(page):
    """Return the fields of a page as a guest's driver reads them."""
    return {name: struct.unpack_from(form, page, at)[0] for name, (at, form) in LAYOUT.items()}


def tai_at(fields, counter):
    """Return TAI in seconds when the counter has a value, as UAPI.13 has it calculated."""
    passed = counter - fields["counter_value"]
    whole = passed * fields["counter_period_frac_sec"] >> fields["counter_period_shift"]
    return fields["time_sec"] + (fields["time_frac_sec"] + whole) / 2**64


def build(memory=None, counter=10**6):
    levels = []
    memory = memory or GuestMemory([(0, 1 << 16)])
    device = VmClock(memory, PAGE, IrqLine(levels.append), lambda: counter, HZ, lambda: NOW)
    return device, memory, levels


def test_the_page_is_as_linux_reads_it():
    device, memory, levels = build()
    assert memory.read(PAGE, 4096) == bytes(4096)
    device.resume()
    found = parse(memory.read(PAGE, 4096))
    assert memory.read(PAGE, 4) == b"VCLK"
    expected = {
        "size": 4096,
        "version": 1,
        "counter_id": 1,
        "time_type": 1,
        "seq_count": 2,
        "flags": 1 | 1 << 4 | 1 << 8 | 1 << 9,
        "clock_status": 3,
        "counter_value": 10**6,
        "leap_indicator": 0,
    }
    assert {name: found[name] for name in expected} == expected
    assert memory.read(PAGE + 112, 4096 - 112) == bytes(4096 - 112)
    assert levels == [], "nobody knows of it yet"
    assert found["disruption_marker"] and found["vm_generation_counter"]


def test_the_period_is_that_of_the_standard():
    # UAPI.13, "Calculating time": a clock of 1 GHz.
    assert period_of(10**9) == (0x89705F4136B4A597, 29)
    for hertz in (10**6, 2_099_998_000, 3_700_000_001, 1 << 32):
        period, shift = period_of(hertz)
        assert period.bit_length() == 64
        assert hertz * period >> shift == pytest.approx(1 << 64, rel=1e-12)


def test_the_time_is_the_hosts():
    device, memory, _ = build()
    device.resume()
    found = parse(memory.read(PAGE, 112))
    offset = found["tai_offset_sec"]
    assert offset >= 37
    assert tai_at(found, 10**6) - offset == pytest.approx(NOW, abs=1e-6)
    assert tai_at(found, 10**6 + 3600 * HZ) - offset == pytest.approx(NOW + 3600, abs=1e-6)
    rate = found["counter_period_maxerror_rate_frac_sec"] / found["counter_period_frac_sec"]
    assert rate == pytest.approx(250e-6)


def test_a_host_that_knows_its_offset_is_believed(monkeypatch):
    clocks = {vmclock.time.CLOCK_TAI: 138.0, vmclock.time.CLOCK_REALTIME: 100.0}
    monkeypatch.setattr(vmclock.time, "clock_gettime", clocks.__getitem__)
    assert vmclock.host_tai_offset() == 38
    clocks[vmclock.time.CLOCK_TAI] = 100.0
    assert vmclock.host_tai_offset() == 37


def test_a_clone_finds_other_values_and_hears_of_them():
    device, memory, _ = build()
    device.resume()
    before = parse(memory.read(PAGE, 112))
    device.renew()
    assert parse(memory.read(PAGE, 112)) == before, "it does not run yet"
    seen = []
    device._line = IrqLine(lambda level: seen.append((level, parse(memory.read(PAGE, 112)))))
    device.resume()
    after = parse(memory.read(PAGE, 112))
    for name in ("disruption_marker", "vm_generation_counter"):
        assert after[name] != before[name]
    assert after["seq_count"] == before["seq_count"] + 2
    assert seen == [(True, after), (False, after)]
    seen.clear()
    device.pause()
    device.resume()
    assert not seen and parse(memory.read(PAGE, 112)) == after, "the counter went on"


def test_a_copy_goes_on_counting_where_its_original_stood():
    device, memory, _ = build()
    device.resume()
    state = device.save()
    copy, _, _ = build(memory)
    copy.restore(state)
    assert copy.save() == state
    copy.renew()
    copy.resume()
    found = parse(memory.read(PAGE, 112))
    assert found["seq_count"] == state.sequence + 2
    assert found["disruption_marker"] != state.disruption_marker


def test_readers_see_that_it_is_being_written():
    device, memory, _ = build()
    sequences = []
    write = memory.write

    def watched(address, data):
        if address != PAGE + 12:
            sequences.append(struct.unpack("<I", memory.read(PAGE + 12, 4))[0])
        write(address, data)

    memory.write = watched
    device.resume()
    assert len(sequences) == 2 and all(number & 1 for number in sequences)


def test_a_sequence_count_that_ends_begins_anew():
    device, memory, _ = build()
    device.restore(VmClockState(1, 2, 0xFFFF_FFFE))
    device.renew()
    device.resume()
    assert parse(memory.read(PAGE, 112))["seq_count"] == 0


def test_a_memory_that_ends_below_it_stays_as_it_is():
    memory = GuestMemory([(0, 0x8000)])
    device, _, levels = build(memory)
    device.renew()
    device.resume()
    assert memory.read(0, 0x8000) == bytes(0x8000)
    assert levels == [True, False]
