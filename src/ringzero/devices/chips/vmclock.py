"""VMClock (UAPI.13; Linux include/uapi/linux/vmclock-abi.h): the counter's relation to real time.

A page of guest memory says how to turn the time-stamp counter into TAI, and has two values that
are other ones in every copy of a machine: one for whoever has calibrated the counter, one for
whoever holds what must be unique. The guest finds it through ACPI and hears of a change by an
event; Linux (since 6.13) makes a PTP clock and /dev/vmclock0 of it.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable

from ringzero.core.clocks import read_together
from ringzero.core.irq import IrqLine
from ringzero.core.memory import PAGE_SIZE, GuestMemory
from ringzero.devices.contract import DEVICES, Device
from ringzero.records import record

MAGIC = 0x4B4C_4356  # "VCLK"
VERSION = 1
COUNTER_X86_TSC = 1
TIME_TAI = 1
# Flags. The numbers of the last two are those of Linux and QEMU; UAPI.13 counts one less, since it
# leaves out the one before (VMCLOCK_FLAG_TIME_MONOTONIC).
TAI_OFFSET_VALID, PERIOD_MAXERROR_VALID = 1 << 0, 1 << 4
GENERATION_PRESENT, NOTIFICATION_PRESENT = 1 << 8, 1 << 9
FLAGS = TAI_OFFSET_VALID | PERIOD_MAXERROR_VALID | GENERATION_PRESENT | NOTIFICATION_PRESENT
# The clock was set by the host's when the machine was started, and is not corrected since.
STATUS_FREERUNNING = 3
# struct vmclock_abi up to the sequence count, which guards what is behind it.
CONSTANT = struct.Struct("<IIHBB")
SEQUENCE_OFFSET, VARIABLE_OFFSET = 12, 16
# Disruption marker, flags, status, smearing hint, TAI offset, leap indicator, shift of the period;
# counter, its period, estimated and maximum error of that; seconds, their fraction, estimated and
# maximum error of these; generation.
VARIABLE = struct.Struct("<QQ2xBBhBBQQQQQQQQQ")
# By how much a counter may be off, of 1,000,000: KVM takes one that differs by more for another
# (its parameter tsc_tolerance_ppm).
MAXIMUM_ERROR = 250
# TAI minus UTC in seconds, since 2017; for hosts whose kernel was not told. No further leap second
# is announced (IERS, bulletin C).
TAI_OFFSET = 37
_MARKER_SIZE = 8
_MASK_32, _MASK_64 = (1 << 32) - 1, (1 << 64) - 1


def host_tai_offset() -> int:
    """Return TAI minus UTC in seconds, as the host's kernel knows it."""
    apart = time.clock_gettime(time.CLOCK_TAI) - time.clock_gettime(time.CLOCK_REALTIME)
    return round(apart) or TAI_OFFSET


def period_of(counter_hz: int) -> tuple[int, int]:
    """Return (period, shift): a tick has period / 2^(64 + shift) seconds, to 64 bits."""
    # Up to 63: as many as there are at 2^63 hertz.
    shift = (counter_hz - 1).bit_length() - 1
    return (1 << 64 + shift) // counter_hz, shift


@record
class VmClockState:
    """The two values, and the sequence count. A machine saved without the device has none yet."""

    disruption_marker: int = 0
    generation: int = 0
    sequence: int = 0


@DEVICES.register("vmclock")
class VmClock(Device[VmClockState]):
    """Keeps the page at guest-physical `address`; `line` is pulsed when a copy has another.

    `clock()` is the guest's counter at `counter_hz`, `now()` the host's UTC in seconds. The page
    is written before the machine's first instruction, and before a copy's. The device has no
    registers.
    """

    state_type = VmClockState

    def __init__(
        self,
        memory: GuestMemory,
        address: int,
        line: IrqLine,
        clock: Callable[[], int],
        counter_hz: int,
        now: Callable[[], float] = time.time,
        source: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._memory = memory
        self._address = address
        self._line = line
        self._clock = clock
        self._counter_hz = counter_hz
        self._period, self._shift = period_of(counter_hz)
        self._now = now
        self._source = source
        self._marker, self._generation = self._number(), self._number()
        self._sequence = 0
        # Whether the page is to be written when the machine goes on; and the guest to hear of it.
        self._due, self._changed = True, False

    def _number(self) -> int:
        return int.from_bytes(self._source(_MARKER_SIZE), "little")

    def renew(self) -> None:
        """Have the guest of a clone find other values, and the time anew, when it goes on."""
        self._marker, self._generation = self._number(), self._number()
        self._due = self._changed = True

    def reset(self) -> None:
        """Keep the values (a reboot makes no new machine), for the guest to find them again."""
        self._sequence = 0
        self._due, self._changed = True, False

    def resume(self) -> None:
        if not self._due:
            return
        self._due = False
        # A machine of a few pages, as tests have them, may end below the address.
        if self._memory.is_ram(self._address, PAGE_SIZE):
            self._publish()
        if self._changed:
            self._changed = False
            self._line.pulse()

    def _publish(self) -> None:
        memory, sequence = self._memory, self._sequence + 2 & _MASK_32
        # An odd number tells readers that the page is being written.
        memory.write_int(self._address + SEQUENCE_OFFSET, 4, sequence - 1 & _MASK_32)
        memory.write(
            self._address,
            CONSTANT.pack(MAGIC, PAGE_SIZE, VERSION, COUNTER_X86_TSC, TIME_TAI),
        )
        offset = host_tai_offset()
        counter, now = read_together(self._clock, self._counter_hz, self._now)
        seconds = int(now)
        memory.write(
            self._address + VARIABLE_OFFSET,
            VARIABLE.pack(
                self._marker,
                FLAGS,
                STATUS_FREERUNNING,
                0,
                offset,
                0,
                self._shift,
                counter & _MASK_64,
                self._period,
                0,
                self._period * MAXIMUM_ERROR // 1_000_000,
                seconds + offset,
                int((now - seconds) * (1 << 64)),
                0,
                0,
                self._generation,
            ),
        )
        memory.write_int(self._address + SEQUENCE_OFFSET, 4, sequence)
        self._sequence = sequence

    def read(self, offset: int, width: int) -> int:
        """Read nothing: the device has no registers."""
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """Ignore the write: the device has no registers."""

    def save(self) -> VmClockState:
        return VmClockState(self._marker, self._generation, self._sequence)

    def restore(self, state: VmClockState) -> None:
        # Guest memory is restored by itself, and has the same values.
        self._marker = state.disruption_marker & _MASK_64
        self._generation = state.generation & _MASK_64
        self._sequence = state.sequence & _MASK_32 & ~1
        self._due = self._changed = False
