import calendar
import time

import pytest

from ringzero.devices.chips.rtc import Rtc

MOMENT = calendar.timegm((2024, 2, 29, 23, 59, 58))


@pytest.fixture
def clock():
    return [float(MOMENT)]


@pytest.fixture
def rtc(clock):
    return Rtc(lambda: clock[0])


def get(rtc, register):
    rtc.write(0, 1, register)
    return rtc.read(1, 1)


def put(rtc, register, value):
    rtc.write(0, 1, register)
    rtc.write(1, 1, value)


def test_time_in_bcd(rtc):
    assert [get(rtc, r) for r in (0, 2, 4, 6, 7, 8, 9, 0x32)] == [
        0x58, 0x59, 0x23, 5, 0x29, 0x02, 0x24, 0x20,
    ]  # a Thursday: day 5, Sunday being 1  # fmt: skip


def test_leap_day_rolls_over(rtc, clock):
    clock[0] += 2
    assert [get(rtc, r) for r in (0, 2, 4, 7, 8)] == [0, 0, 0, 1, 3]


def test_binary_and_12_hours(rtc):
    put(rtc, 0x0B, 0x04)
    assert get(rtc, 4) == 11 | 0x80
    assert get(rtc, 0) == 58


def test_setting_the_time(rtc, clock):
    put(rtc, 0x0B, 0x82)
    for register, value in ((0, 0x01), (2, 0x02), (4, 0x03), (7, 0x04), (8, 0x05), (9, 0x30)):
        put(rtc, register, value)
    put(rtc, 0x0B, 0x02)
    clock[0] += 5
    assert [get(rtc, r) for r in (0, 2, 4, 7, 8, 9)] == [6, 2, 3, 4, 5, 0x30]
    assert get(rtc, 6) == time.gmtime(calendar.timegm((2030, 5, 4, 0, 0, 0))).tm_wday + 2


def test_status_registers(rtc):
    assert get(rtc, 0x0A) & 0x80 == 0, "no update in progress"
    assert get(rtc, 0x0C) == 0
    assert get(rtc, 0x0D) == 0x80
    put(rtc, 0x0D, 0)
    assert get(rtc, 0x0D) == 0x80


def test_memory_survives(rtc):
    put(rtc, 0x40, 0x5A)
    assert get(rtc, 0x40 | 0x80) == 0x5A


def test_nonsense_time_is_ignored(rtc):
    put(rtc, 0x0B, 0x82)
    put(rtc, 8, 0xFF)
    put(rtc, 0x0B, 0x02)
    assert get(rtc, 8) == 2
