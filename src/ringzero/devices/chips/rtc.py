"""Real-time clock and CMOS memory (Motorola MC146818A data sheet), without its interrupts.

Registers 0x00-0x09 and 0x32 are the time, kept as an offset from the host's
clock; 0x0A-0x0D control; the rest is memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ringzero.devices.contract import DEVICES, ByteDevice
from ringzero.errors import StateError
from ringzero.records import record

CMOS_SIZE = 128
SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY = 0, 2, 4, 6, 7, 8, 9, 0x32
TIME_REGISTERS = frozenset((SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY))
REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D = 0x0A, 0x0B, 0x0C, 0x0D
B_SET, B_BINARY, B_24_HOURS = 0x80, 0x04, 0x02
# 32.768 kHz time base, 1024 Hz periodic rate: the value every PC firmware leaves.
A_DEFAULT = 0x26
D_VALID = 0x80
PM = 0x80
# Years a guest can set: what calendar.timegm takes and a 64-bit time_t holds with room; the first
# second of the one, and of the other, of UTC.
FIRST_YEAR, LAST_YEAR = 1970, 9999
_EARLIEST, _LATEST = 0, 253_370_764_800


@record
class RtcState:
    """Index register, memory, and the guest's time minus the host's, in seconds."""

    index: int
    cmos: bytes
    offset: int


@DEVICES.register("rtc")
class Rtc(ByteDevice[RtcState]):
    """Index register at offset 0, data at offset 1. `now()` is the host's UTC in seconds."""

    state_type = RtcState

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._offset = 0
        self._cmos = bytearray(CMOS_SIZE)
        self.reset()

    def reset(self) -> None:
        """Set the control registers back; time and memory live on a battery."""
        self._index = 0
        self._cmos[REGISTER_A] = A_DEFAULT
        self._cmos[REGISTER_B] = B_24_HOURS
        self._cmos[REGISTER_D] = D_VALID

    def read_byte(self, offset: int) -> int:
        if offset != 1:
            return 0xFF
        with self._lock:
            index = self._index
            if index in TIME_REGISTERS and not self._cmos[REGISTER_B] & B_SET:
                self._load_time()
            return self._cmos[index]

    def write_byte(self, offset: int, value: int) -> None:
        if offset == 0:
            self._index = value & 0x7F  # bit 7 masks NMI on PC boards
            return
        if offset != 1:
            return
        with self._lock:
            index = self._index
            if index == REGISTER_B:
                was_set = self._cmos[REGISTER_B] & B_SET
                if value & B_SET and not was_set:
                    self._load_time()
                self._cmos[REGISTER_B] = value
                if was_set and not value & B_SET:
                    self._store_time()
            elif index == REGISTER_A:
                self._cmos[REGISTER_A] = value & 0x7F
            elif index in TIME_REGISTERS:
                if self._cmos[REGISTER_B] & B_SET:
                    self._cmos[index] = value
                else:
                    self._load_time()
                    self._cmos[index] = value
                    self._store_time()
            elif index not in (REGISTER_C, REGISTER_D):
                self._cmos[index] = value

    def _encode(self, value: int) -> int:
        if self._cmos[REGISTER_B] & B_BINARY:
            return value
        return value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        if self._cmos[REGISTER_B] & B_BINARY:
            return value
        return (value >> 4) * 10 + (value & 0x0F)

    def _load_time(self) -> None:
        now = time.gmtime(int(self._now()) + self._offset)
        hour = now.tm_hour
        half = 0
        if not self._cmos[REGISTER_B] & B_24_HOURS:
            half = PM if hour >= 12 else 0
            hour = hour % 12 or 12
        self._cmos[HOURS] = self._encode(hour) | half
        for register, value in (
            (SECONDS, min(now.tm_sec, 59)),
            (MINUTES, now.tm_min),
            (WEEKDAY, (now.tm_wday + 1) % 7 + 1),  # 1 is Sunday
            (DAY, now.tm_mday),
            (MONTH, now.tm_mon),
            (YEAR, now.tm_year % 100),
            (CENTURY, now.tm_year // 100),
        ):
            self._cmos[register] = self._encode(value)

    def _store_time(self) -> None:
        """Turn the time registers into an offset; nonsense leaves the clock as it is."""
        cmos, decode = self._cmos, self._decode
        if cmos[REGISTER_B] & B_24_HOURS:
            hour = decode(cmos[HOURS])
        else:
            hour = decode(cmos[HOURS] & ~PM) % 12 + (12 if cmos[HOURS] & PM else 0)
        year = decode(cmos[CENTURY]) * 100 + decode(cmos[YEAR])
        month, day = decode(cmos[MONTH]), decode(cmos[DAY])
        if not (FIRST_YEAR <= year <= LAST_YEAR and 1 <= month <= 12 and 1 <= day <= 31):
            return
        moment = (year, month, day, hour, decode(cmos[MINUTES]), decode(cmos[SECONDS]))
        import calendar

        self._offset = calendar.timegm(moment) - int(self._now())

    def save(self) -> RtcState:
        with self._lock:
            return RtcState(self._index, bytes(self._cmos), self._offset)

    def restore(self, state: RtcState) -> None:
        if len(state.cmos) != CMOS_SIZE or not 0 <= state.index < CMOS_SIZE:
            raise StateError("rtc: the memory has another size", expected=CMOS_SIZE)
        if not _EARLIEST <= int(self._now()) + state.offset <= _LATEST:
            raise StateError("rtc: the time is out of range", offset=state.offset)
        with self._lock:
            self._index = state.index
            self._cmos = bytearray(state.cmos)
            self._offset = state.offset
