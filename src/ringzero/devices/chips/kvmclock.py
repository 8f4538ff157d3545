"""KVM's paravirtual clock (Linux Documentation/virt/kvm/x86/msr.rst, .../cpuid.rst).

The guest names a page of its memory by an MSR; the device writes there how to
turn the TSC into nanoseconds. The TSC is the same on all vCPUs and never
stops, so one write per vCPU suffices and the "stable" bit is set.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable

from ringzero.core.memory import GuestMemory
from ringzero.devices.contract import DEVICES, Device
from ringzero.errors import StateError
from ringzero.records import record

MSR_WALL_CLOCK_OLD, MSR_SYSTEM_TIME_OLD = 0x11, 0x12
MSR_WALL_CLOCK, MSR_SYSTEM_TIME = 0x4B56_4D00, 0x4B56_4D01
MSRS = (MSR_WALL_CLOCK_OLD, MSR_SYSTEM_TIME_OLD, MSR_WALL_CLOCK, MSR_SYSTEM_TIME)
SYSTEM_TIME_ENABLE = 1
TSC_STABLE, GUEST_STOPPED = 1, 2
# struct pvclock_vcpu_time_info: version, pad, TSC, nanoseconds, multiplier, shift, flags.
TIME_INFO = struct.Struct("<IIQQIbBxx")
# struct pvclock_wall_clock: version, seconds, nanoseconds.
WALL_CLOCK = struct.Struct("<III")
NANOSECONDS = 1_000_000_000
MASK_64 = (1 << 64) - 1


def tsc_scale(tsc_hz: int) -> tuple[int, int]:
    """Return (multiplier, shift): nanoseconds = (ticks << shift) * multiplier >> 32.

    `multiplier` has its upper bit set, for the best precision that 32 bits give.
    """
    shift = 0
    while (NANOSECONDS << 32) // (tsc_hz << shift if shift >= 0 else tsc_hz >> -shift) >= 1 << 32:
        shift += 1
    while (NANOSECONDS << 32) // (tsc_hz << shift if shift >= 0 else tsc_hz >> -shift) < 1 << 31:
        shift -= 1
    scaled = (NANOSECONDS << 32 << max(-shift, 0)) // (tsc_hz << max(shift, 0))
    return min(scaled, (1 << 32) - 1), shift


@record
class KvmclockState:
    """What each vCPU wrote to its MSRs; the TSC at which the clock read 0; page versions."""

    wall_clock: int
    system_time: tuple[int, ...]
    origin: int
    version: int


@DEVICES.register("kvmclock")
class Kvmclock(Device[KvmclockState]):
    """The clock of the whole machine; `port(i)` is what vCPU i's MSR bus gets.

    `clock()` is the guest's TSC at `tsc_hz`, `now()` the host's UTC in seconds.
    """

    state_type = KvmclockState

    def __init__(
        self,
        memory: GuestMemory,
        vcpus: int,
        clock: Callable[[], int],
        tsc_hz: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._memory = memory
        self._clock = clock
        self._tsc_hz = tsc_hz
        self._now = now
        self._multiplier, self._shift = tsc_scale(tsc_hz)
        self._lock = threading.Lock()
        self._vcpus = vcpus
        self.reset()

    def reset(self) -> None:
        self._wall_clock = 0
        self._system_time = [0] * self._vcpus
        # The TSC's zero, as in KVM: Linux compares its first times, by the TSC, with this clock's,
        # and never comes up where this one is a fifth of a second behind.
        self._origin = 0
        self._version = 0

    def port(self, vcpu: int) -> KvmclockPort:
        """Return the registers of one vCPU."""
        return KvmclockPort(self, vcpu)

    def read(self, offset: int, width: int) -> int:
        """Read nothing: the device has MSRs only."""
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """Ignore the write: the device has MSRs only."""

    def get(self, vcpu: int, index: int) -> int:
        """Return an MSR as last written."""
        if index in (MSR_WALL_CLOCK, MSR_WALL_CLOCK_OLD):
            return self._wall_clock
        return self._system_time[vcpu]

    def set(self, vcpu: int, index: int, value: int) -> None:
        """Take an MSR: fill the guest's page, if the address is one of RAM."""
        with self._lock:
            if index in (MSR_WALL_CLOCK, MSR_WALL_CLOCK_OLD):
                self._wall_clock = value
                self._write_wall_clock()
            else:
                self._system_time[vcpu] = value
                self._write_system_time(vcpu, 0)

    def _nanoseconds(self) -> int:
        return (self._clock() - self._origin) * NANOSECONDS // self._tsc_hz

    def _write_wall_clock(self) -> None:
        address = self._wall_clock & ~3
        if not self._memory.is_ram(address, WALL_CLOCK.size):
            return
        # Wall time at the moment when the system time read 0.
        boot = int(self._now() * NANOSECONDS) - self._nanoseconds()
        seconds, rest = divmod(boot, NANOSECONDS)
        self._version = self._version + 2 & 0xFFFF_FFFF
        self._memory.write(address, WALL_CLOCK.pack(self._version, seconds & 0xFFFF_FFFF, rest))

    def _write_system_time(self, vcpu: int, flags: int) -> None:
        value = self._system_time[vcpu]
        address = value & ~3
        if not value & SYSTEM_TIME_ENABLE or not self._memory.is_ram(address, TIME_INFO.size):
            return
        # An odd version tells readers that the page is being written.
        self._version = self._version + 2 & 0xFFFF_FFFF
        self._memory.write_int(address, 4, self._version | 1)
        info = TIME_INFO.pack(
            self._version | 1,
            0,
            self._origin & MASK_64,
            0,
            self._multiplier,
            self._shift,
            TSC_STABLE | flags,
        )
        self._memory.write(address + 4, info[4:])
        self._memory.write_int(address, 4, self._version + 2 & 0xFFFF_FFFF)
        self._version = self._version + 2 & 0xFFFF_FFFF

    def resume(self) -> None:
        """Tell the guest's watchdogs that it stood still (GUEST_STOPPED)."""
        with self._lock:
            for vcpu in range(self._vcpus):
                self._write_system_time(vcpu, GUEST_STOPPED)

    def save(self) -> KvmclockState:
        with self._lock:
            return KvmclockState(
                self._wall_clock, tuple(self._system_time), self._origin, self._version
            )

    def restore(self, state: KvmclockState) -> None:
        if len(state.system_time) != self._vcpus:
            raise StateError("kvmclock: another number of vCPUs", expected=self._vcpus)
        with self._lock:
            self._wall_clock = state.wall_clock & MASK_64
            self._system_time = [value & MASK_64 for value in state.system_time]
            self._origin = state.origin
            self._version = state.version & 0xFFFF_FFFE


class KvmclockPort:
    """One vCPU's registers (`ringzero.core.bus.MsrDevice`)."""

    def __init__(self, clock: Kvmclock, vcpu: int) -> None:
        self._device = clock
        self._vcpu = vcpu

    def read_msr(self, index: int) -> int | None:
        return self._device.get(self._vcpu, index)

    def write_msr(self, index: int, value: int) -> bool:
        self._device.set(self._vcpu, index, value)
        return True
