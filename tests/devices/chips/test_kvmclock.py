"""The KVM clock, read as Linux's pvclock.c reads it."""

import struct

import pytest

from ringzero.core.memory import GuestMemory
from ringzero.devices.chips.kvmclock import Kvmclock, tsc_scale


def nanoseconds(page: bytes, tsc: int) -> int:
    version, _, stamp, base, multiplier, shift, flags = struct.unpack("<IIQQIbBxx", page)
    assert version % 2 == 0 and version > 0 and flags & 1
    delta = tsc - stamp
    delta = delta << shift if shift >= 0 else delta >> -shift
    return base + (delta * multiplier >> 32)


class System:
    def __init__(self, hz):
        self.tsc = 12345
        self.hz = hz
        self.memory = GuestMemory([(0, 0x10000)])
        self.clock = Kvmclock(self.memory, 2, lambda: self.tsc, hz, lambda: 1_700_000_000.5)


@pytest.mark.parametrize("hz", [10**6, 25_000_000, 10**9 - 1, 10**9, 2_596_108_000, 5 * 10**9])
def test_system_time(hz):
    system = System(hz)
    ports = [system.clock.port(i) for i in range(2)]
    assert ports[1].write_msr(0x4B564D01, 0x2000 | 1)
    page = system.memory.read(0x2000, 32)
    for seconds in (0, 1, 86400):
        # From the TSC's zero on, however late the clock was made.
        tsc = 12345 + seconds * hz
        seen = nanoseconds(page, tsc)
        assert abs(seen - tsc * 10**9 // hz) <= seconds + tsc // hz + 2
    assert ports[1].read_msr(0x4B564D01) == 0x2001 and ports[0].read_msr(0x4B564D01) == 0


def test_all_vcpus_agree():
    system = System(3 * 10**9)
    for i in range(2):
        system.tsc += 777
        system.clock.port(i).write_msr(0x12, 0x3000 + 64 * i | 1)
    pages = [system.memory.read(0x3000 + 64 * i, 32) for i in range(2)]
    assert nanoseconds(pages[0], 10**12) == nanoseconds(pages[1], 10**12)


def test_wall_clock_is_the_time_of_boot():
    system = System(10**9)
    system.tsc += 500_000_000
    system.clock.port(0).write_msr(0x4B564D00, 0x4000)
    version, seconds, rest = struct.unpack("<III", system.memory.read(0x4000, 12))
    assert version % 2 == 0 and (seconds, rest) == (1_699_999_999, 999_987_655)


@pytest.mark.parametrize("address", [0xFFF0, 1 << 40, (1 << 64) - 4])
def test_pages_outside_ram_are_ignored(address):
    system = System(10**9)
    assert system.clock.port(0).write_msr(0x4B564D01, address | 1)
    assert system.clock.port(0).write_msr(0x4B564D00, address & ~3)


def test_resume_says_that_the_guest_stood_still():
    system = System(10**9)
    system.clock.port(0).write_msr(0x4B564D01, 0x2001)
    system.clock.resume()
    assert system.memory.read(0x2000 + 29, 1)[0] & 2


@pytest.mark.parametrize("hz", [1000, 10**6, 10**9, 4 * 10**9, 10**11])
def test_scale_uses_all_bits(hz):
    multiplier, shift = tsc_scale(hz)
    assert 1 << 31 <= multiplier < 1 << 32
    exact = 10**9 / hz
    assert abs(multiplier * 2.0 ** (shift - 32) / exact - 1) < 2**-30
