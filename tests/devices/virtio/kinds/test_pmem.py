import struct

import pytest

from ringzero.devices.virtio.kinds.pmem import CONFIG, DONE, FAILED, FLUSH, Pmem
from ringzero.errors import DiskError
from tests.devices.specimens import virtio
from tests.devices.virtio.driver import Driver

BASE, SIZE = 4 << 30, 64 << 20


class Store:
    def __init__(self, fault=None):
        self.flushed, self.fault = 0, fault

    def flush(self):
        self.flushed += 1
        if self.fault is not None:
            raise self.fault


def started(store):
    return Driver(Pmem(store, BASE, SIZE)).start()


def specimen():
    def work(driver):
        driver.start()
        driver.add(0, readable=[struct.pack("<I", FLUSH)], writable=[4])

    return virtio("pmem", Pmem(Store(), BASE, SIZE), work)


def asked(driver, readable, writable=(4,)):
    """Return what a request is answered with."""
    places = driver.add(0, readable=readable, writable=writable)
    return b"".join(
        driver.memory.read(place, size) for place, size in zip(places, writable, strict=True)
    )


def test_where_it_is():
    driver = started(Store())
    words = [driver.read(0x100 + offset) for offset in range(0, CONFIG.size, 4)]
    assert CONFIG.unpack(struct.pack("<4I", *words)) == (BASE, SIZE)


def test_a_flush_is_done_before_it_is_answered():
    store = Store()
    driver = started(store)
    assert asked(driver, [struct.pack("<I", FLUSH)]) == struct.pack("<I", DONE)
    assert store.flushed == 1
    # The answer may come in pieces, and so may the request.
    assert asked(driver, [b"\0\0", b"\0\0"], (1, 3)) == struct.pack("<I", DONE)
    assert driver.device.flushes == store.flushed == 2


def test_a_flush_that_fails_says_so():
    driver = started(Store(DiskError("no room")))
    assert asked(driver, [struct.pack("<I", FLUSH)]) == struct.pack("<I", FAILED)
    assert driver.device.failures == 1


@pytest.mark.parametrize("request_", [b"", b"\0", b"\0\0\0", b"\1\0\0\0", b"\xff" * 4])
def test_what_is_no_request(request_):
    store = Store()
    driver = started(store)
    readable = [request_] if request_ else []
    assert asked(driver, readable) == struct.pack("<I", FAILED)
    assert store.flushed == 0


def test_an_answer_without_room():
    store = Store()
    driver = started(store)
    assert asked(driver, [struct.pack("<I", FLUSH)], ()) == b""
    assert store.flushed == 1
