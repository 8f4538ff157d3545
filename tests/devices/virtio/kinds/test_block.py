import struct
import threading
import time

import pytest

from ringzero.core.buckets import Bucket
from ringzero.devices.virtio.kinds.block import Block, Throttle
from ringzero.errors import DiskError
from tests.devices.virtio.driver import EVENT_IDX, Driver

READ, WRITE, FLUSH, GET_ID, DISCARD, ZEROES = 0, 1, 4, 8, 11, 13


class MemoryDisk:
    """A disk in a byte array that can be made to wait or to fail."""

    def __init__(self, size=64 * 512, read_only=False):
        self.data = bytearray((i // 512) & 0xFF for i in range(size))
        self.read_only = read_only
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.failing = False
        self.delay = 0
        self.threads = set()
        self.calls = []

    @property
    def size(self):
        return len(self.data)

    def _enter(self, *call):
        self.threads.add(threading.current_thread())
        self.entered.set()
        self.gate.wait(10)
        time.sleep(self.delay)
        self.calls.append(call)
        if self.failing:
            raise DiskError("the host's disk is gone")

    def read_into(self, offset, buffers):
        self._enter("read", offset)
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def write(self, offset, buffers):
        self._enter("write", offset)
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    def write_zeroes(self, offset, length, *, unmap=True):
        self._enter("zeroes", offset, length, unmap)
        self.data[offset : offset + length] = bytes(length)

    def discard(self, offset, length):
        self._enter("discard", offset, length)

    def flush(self):
        self._enter("flush")


class Guest:
    def __init__(self, disk=None, features=0):
        self.disk = disk or MemoryDisk()
        self.block = Block(self.disk, identity="serial-number-1")
        self.driver = Driver(
            self.block,
            features=features | 1 << 9 | 1 << 13 | 1 << 14
            if not self.disk.read_only
            else features | 1 << 5,
        ).start()

    def offer(self, kind, sector, data=b"", sizes=(), notify=True):
        header = struct.pack("<IIQ", kind, 0, sector)
        readable = [header, data] if data else [header]
        return self.driver.add(0, readable=readable, writable=[*sizes, 1], notify=notify)

    def finish(self, count=1):
        used = []
        end = time.monotonic() + 10
        while len(used) < count and time.monotonic() < end:
            used += self.driver.used(0)
            time.sleep(0.001)
        assert len(used) == count
        return used

    def request(self, kind, sector, data=b"", sizes=()):
        addresses = self.offer(kind, sector, data, sizes)
        self.finish()
        parts = [self.driver.memory.read(a, n) for a, n in zip(addresses, sizes, strict=False)]
        return self.driver.memory.read(addresses[-1], 1)[0], b"".join(parts)


@pytest.fixture
def guest():
    guest = Guest()
    yield guest
    guest.block.close()


def test_configuration_space(guest):
    assert guest.driver.transport.read(0x100, 8) == 64
    assert guest.driver.transport.read(0x114, 4) == 512
    assert guest.driver.transport.read(0x10C, 4) == 254
    assert guest.driver.transport.read(0x122, 2) == 1, "one queue"


def test_read_into_several_segments(guest):
    status, data = guest.request(READ, 2, sizes=(512, 1024))
    assert (status, data) == (0, bytes(guest.disk.data[1024 : 1024 + 1536]))


def test_write_then_read(guest):
    assert guest.request(WRITE, 5, b"A" * 1024)[0] == 0
    assert guest.request(READ, 5, sizes=(1024,)) == (0, b"A" * 1024)
    assert guest.driver.edges >= 1


def test_header_in_pieces_and_indirect(guest):
    header = struct.pack("<IIQ", WRITE, 0, 0)
    guest.driver.add(
        0, readable=[header[:3], header[3:] + b"B" * 100, b"B" * 412], writable=[1], indirect=True
    )
    guest.finish()
    assert guest.disk.data[:512] == b"B" * 512


def test_flush_and_identity(guest):
    assert guest.request(FLUSH, 0)[0] == 0
    assert ("flush",) in guest.disk.calls
    assert guest.request(GET_ID, 0, sizes=(20,)) == (0, b"serial-number-1".ljust(20, b"\0"))


def test_discard_and_write_zeroes(guest):
    assert guest.request(DISCARD, 0, struct.pack("<QII", 4, 8, 0))[0] == 0
    assert guest.request(ZEROES, 0, struct.pack("<QIIQII", 1, 1, 1, 3, 2, 0))[0] == 0
    assert guest.disk.calls == [
        ("discard", 2048, 4096),
        ("zeroes", 512, 512, True),
        ("zeroes", 1536, 1024, False),
    ]


@pytest.mark.parametrize(
    ("kind", "sector", "data", "sizes", "status"),
    [
        (READ, 63, b"", (1024,), 1), (READ, 1 << 60, b"", (512,), 1), (READ, 0, b"", (100,), 1),
        (READ, (1 << 64) - 1, b"", (512,), 1), (WRITE, 64, b"x" * 512, (), 1),
        (WRITE, 0, b"x" * 10, (), 1), (99, 0, b"", (), 2),
        (DISCARD, 0, struct.pack("<QII", 60, 8, 0), (), 1),
        (DISCARD, 0, struct.pack("<QII", 0, 8, 1), (), 2),
        (ZEROES, 0, struct.pack("<QII", 0, 8, 2), (), 2),
        (DISCARD, 0, b"short", (), 2), (DISCARD, 0, struct.pack("<QII", 0, 1, 0) * 17, (), 2),
        (ZEROES, 0, struct.pack("<QII", 0, 0xFFFFFFFF, 0), (), 1),
    ],
)  # fmt: skip
def test_bad_requests_get_a_status(guest, kind, sector, data, sizes, status):
    before = bytes(guest.disk.data)
    assert guest.request(kind, sector, data, sizes)[0] == status
    assert guest.disk.data == before


@pytest.mark.parametrize(
    ("readable", "writable"), [([b"x" * 16], []), ([b"x" * 5], [1]), ([], [1])]
)
def test_malformed_requests_need_a_reset(guest, readable, writable):
    guest.driver.add(0, readable=readable, writable=writable)
    end = time.monotonic() + 10
    while not guest.driver.read(0x70) & 64 and time.monotonic() < end:
        time.sleep(0.001)
    assert guest.driver.read(0x70) & 64


def test_read_only_disk_refuses_writes():
    guest = Guest(MemoryDisk(read_only=True))
    assert guest.driver.read(0x10) & 1 << 5
    assert guest.request(WRITE, 0, b"x" * 512)[0] == 1
    assert guest.request(READ, 0, sizes=(512,))[0] == 0
    assert guest.request(DISCARD, 0, struct.pack("<QII", 0, 1, 0))[0] == 2
    guest.block.close()


def test_host_error_is_an_io_error(guest):
    guest.disk.failing = True
    assert guest.request(READ, 0, sizes=(512,))[0] == 1
    assert guest.block.errors == 1 and "gone" in guest.block.last_error.message
    guest.disk.failing = False
    assert guest.request(READ, 0, sizes=(512,))[0] == 0


def test_slow_disks_and_large_requests_go_to_the_worker():
    here = threading.current_thread()
    guest = Guest(MemoryDisk(1 << 20))
    guest.request(READ, 0, sizes=(512,))
    assert guest.disk.threads == {here}, "a small request of a quick disk"
    guest.disk.threads.clear()
    guest.request(READ, 0, sizes=(1 << 17,))
    guest.request(FLUSH, 0)
    assert here not in guest.disk.threads
    guest.disk.delay = 0.002
    guest.request(READ, 0, sizes=(512,))
    guest.disk.threads.clear()
    guest.disk.delay = 0
    for _ in range(5):
        guest.request(READ, 0, sizes=(512,))
    assert here not in guest.disk.threads, "it was slow a moment ago"
    guest.block.close()


def slow(guest):
    """Make the device see a slow disk, so that the next requests go to its worker."""
    guest.disk.delay = 0.002
    guest.request(READ, 0, sizes=(512,))
    guest.disk.delay = 0
    guest.disk.calls.clear()


def test_notification_does_not_wait_for_the_disk(guest):
    slow(guest)
    guest.disk.gate.clear()
    start = time.monotonic()
    guest.offer(READ, 0, sizes=(512,))
    assert time.monotonic() - start < 1
    assert guest.driver.used(0) == []
    guest.disk.gate.set()
    guest.finish()


def test_reset_in_mid_request_leaves_memory_alone(guest):
    slow(guest)
    guest.disk.gate.clear()
    guest.disk.entered.clear()
    guest.offer(READ, 1, sizes=(512,))
    guest.offer(READ, 1, sizes=(512,))
    assert guest.disk.entered.wait(10)
    threading.Timer(0.05, guest.disk.gate.set).start()
    guest.driver.write(0x70, 0)
    snapshot = guest.driver.memory.read(0, guest.driver.memory.size)
    time.sleep(0.05)
    assert guest.driver.memory.read(0, guest.driver.memory.size) == snapshot
    assert len(guest.disk.calls) == 1
    guest.driver.queues.clear()
    guest.driver.start()
    assert guest.request(READ, 0, sizes=(512,))[0] == 0


def test_pause_finishes_what_is_in_flight(guest):
    slow(guest)
    guest.disk.gate.clear()
    for _ in range(3):
        guest.offer(READ, 0, sizes=(512,))
    threading.Timer(0.05, guest.disk.gate.set).start()
    guest.driver.transport.pause()
    assert len(guest.driver.used(0)) == 3


def test_many_requests_with_event_index():
    guest = Guest(features=EVENT_IDX)
    for _ in range(20):
        for sector in range(8):
            guest.offer(READ, sector, sizes=(512,), notify=sector == 7)
        guest.finish(8)
    guest.block.close()


def test_requests_over_the_limit_wait():
    disk = MemoryDisk()
    device = Block(disk)
    device.throttle(Throttle(Bucket(2, 0.2)))
    driver = Driver(device).start()
    began = time.monotonic()
    for sector in range(6):
        driver.add(0, readable=[struct.pack("<IIQ", 0, 0, sector)], writable=[512, 1])
    done = 0
    while done < 6:
        done += len(driver.used(0))
        assert time.monotonic() < began + 20
        time.sleep(0.005)
    # Two at once, four as their tokens come back.
    assert time.monotonic() - began > 0.3
    device.close()


def test_a_pause_waits_for_no_limit():
    device = Block(MemoryDisk())
    device.throttle(Throttle(None, Bucket(1, 3600.0)))
    driver = Driver(device).start()
    for sector in range(4):
        driver.add(0, readable=[struct.pack("<IIQ", 0, 0, sector)], writable=[512, 1])
    began = time.monotonic()
    driver.transport.pause()
    assert time.monotonic() - began < 10
    assert len(driver.used(0)) == 4
    driver.transport.resume()
    driver.add(0, readable=[struct.pack("<IIQ", 0, 0, 0)], writable=[512, 1])
    time.sleep(0.05)
    assert driver.used(0) == []
    # Nobody waits any more once there is no limit.
    device.throttle(None)
    while not driver.used(0):
        assert time.monotonic() < began + 20
        time.sleep(0.005)
    device.close()
