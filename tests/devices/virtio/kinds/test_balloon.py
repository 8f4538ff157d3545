import struct

import pytest

from ringzero.devices.virtio.kinds.balloon import (
    CONFIG,
    FEATURE_HINTING,
    FEATURE_REPORTING,
    FEATURE_STATISTICS,
    HINT_DONE,
    HINT_FIRST,
    STATISTIC,
    Balloon,
)
from tests.devices.specimens import virtio
from tests.devices.virtio.driver import Driver

ALL = FEATURE_STATISTICS | FEATURE_HINTING | FEATURE_REPORTING
STATISTICS, HINTING, REPORTING = 2, 3, 4
PAGE = 4096


def balloon(**more):
    return Balloon(**{"statistics": True, "hinting": True, "reporting": True, **more})


def started(**more):
    driver = Driver(balloon(**more))
    driver.features |= ALL
    return driver.start()


def specimen():
    def work(driver):
        driver.features |= ALL
        driver.start()
        driver.add(STATISTICS, readable=[STATISTIC.pack(4, 1000)])
        driver.add(0, readable=[struct.pack("<2I", 1, 2)])
        driver.device.resize(7)
        driver.device.start_hinting()
        driver.add(HINTING, readable=[struct.pack("<I", HINT_FIRST)])

    return virtio("balloon", balloon(), work)


def numbers(*pages):
    return struct.pack(f"<{len(pages)}I", *pages)


def free_page(driver):
    """Return the address of a page of the driver's that nothing else is in, full of ones."""
    address = (driver.memory.regions[-1].end - 4 * PAGE) // PAGE * PAGE
    driver.memory.write(address, b"\1" * 2 * PAGE)
    return address


def test_pages_in_the_balloon_are_the_hosts():
    driver = started()
    told = []
    driver.memory.listen(lambda gpa, count: told.append((gpa, count)))
    page = free_page(driver)
    told.clear()
    driver.add(0, readable=[numbers(page // PAGE + 1, page // PAGE)])
    assert driver.memory.read(page, 2 * PAGE) == bytes(2 * PAGE)
    # Code that was there is nobody's any more.
    assert (page, 2 * PAGE) in told
    assert driver.device.counts["inflate_count"] == 1
    # The driver uses it again, told or not.
    driver.memory.write(page, b"again")
    driver.add(1, readable=[numbers(page // PAGE)])
    assert driver.memory.read(page, 5) == b"again"


def test_the_memory_really_goes_back():
    driver = started()
    page = free_page(driver)
    offset = driver.memory.offset_of(page, PAGE)
    held = [start for start, _ in driver.memory.host.base.extents(offset, offset + PAGE)]
    assert held
    driver.add(REPORTING, writable=[(page, PAGE)])
    assert not list(driver.memory.host.base.extents(offset, offset + PAGE))
    assert driver.device.counts["free_page_report_freed"] == PAGE


@pytest.mark.parametrize("page", [0x0FFF_FFFF, 0xFFFF_FFFF])
def test_pages_that_are_none_end_the_driver(page):
    driver = started()
    driver.add(0, readable=[numbers(page)])
    assert driver.transport.failure is not None


def test_a_copy_gives_its_own_pages_back():
    """What it had changed goes; what it shares with others is not touched."""
    from ringzero.core.memory import GuestMemory

    memory = GuestMemory([(0, 1 << 20)])
    memory.write(0, b"original")
    with_image = GuestMemory([(0, 1 << 20)], memory.host.freeze())
    with_image.write(0, b"changed!")
    assert with_image.discard(0, PAGE) == PAGE
    assert with_image.read(0, 8) == b"original" == memory.read(0, 8)
    # Whole pages only.
    assert with_image.discard(1, PAGE) == 0
    with_image.close()
    memory.close()


def test_sizes():
    driver = started(target=3)
    assert driver.device.config()[:8] == struct.pack("<II", 3, 0)
    before = driver.edges
    driver.device.resize(9)
    assert driver.edges > before
    assert CONFIG.unpack(driver.device.config())[:2] == (9, 0)
    driver.device.write_config(4, 4, 5)
    driver.device.write_config(0, 4, 77)
    assert CONFIG.unpack(driver.device.config())[:2] == (9, 5)


def test_statistics_are_asked_for_by_giving_the_buffer_back():
    driver = started()
    driver.device.ask_statistics()
    known = STATISTIC.pack(4, 1000) + STATISTIC.pack(0xFFFE, 1) + STATISTIC.pack(15, 3) + b"odd"
    driver.add(STATISTICS, readable=[known])
    assert driver.device.told() == {"free_memory": 1000, "direct_reclaim": 3}
    assert len(driver.used(STATISTICS)) == 1
    driver.add(STATISTICS, readable=[STATISTIC.pack(4, 2000)])
    assert len(driver.used(STATISTICS)) == 0
    driver.device.ask_statistics()
    assert len(driver.used(STATISTICS)) == 1
    assert driver.device.told()["free_memory"] == 2000


def test_hinting_runs():
    driver = started()
    device = driver.device
    page = free_page(driver)
    driver.add(HINTING, writable=[(page, PAGE)])
    # Nobody has asked.
    assert driver.memory.read(page, 1) == b"\1"
    device.start_hinting()
    assert CONFIG.unpack(device.config())[2] == HINT_FIRST
    driver.add(HINTING, readable=[struct.pack("<I", HINT_FIRST)])
    driver.add(HINTING, writable=[(page, PAGE)])
    assert driver.memory.read(page, 1) == b"\0"
    driver.add(HINTING, readable=[struct.pack("<I", 0)])
    assert (device.command, device.guest_command) == (HINT_DONE, 0)
    device.start_hinting(acknowledges=False)
    driver.add(HINTING, readable=[struct.pack("<I", HINT_FIRST)])
    driver.add(HINTING, readable=[struct.pack("<I", 0)])
    assert device.command == HINT_FIRST
    device.stop_hinting()
    assert device.command == HINT_DONE


def test_queues_that_are_not_there_have_no_number():
    driver = Driver(Balloon(reporting=True))
    driver.features |= FEATURE_REPORTING
    driver.start()
    page = free_page(driver)
    driver.add(2, writable=[(page, PAGE)])
    assert driver.memory.read(page, 1) == b"\0"
