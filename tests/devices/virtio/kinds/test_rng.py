from ringzero.devices.virtio.kinds.rng import MAX_REQUEST, Rng
from tests.devices.virtio.driver import EVENT_IDX, Driver


def test_fills_every_buffer():
    driver = Driver(Rng(lambda count: bytes(i & 0xFF for i in range(count)))).start()
    first, second = driver.add(0, writable=[10, 20])
    assert driver.used(0) == [30]
    assert driver.memory.read(first, 10) == bytes(range(10))
    assert driver.memory.read(second, 20) == bytes(range(10, 30))
    assert driver.edges == 1 and driver.acknowledge() == 1


def test_bytes_differ():
    driver = Driver(Rng()).start()
    a, b = driver.add(0, writable=[32, 32])
    assert driver.memory.read(a, 32) != driver.memory.read(b, 32)


def test_large_request_is_cut():
    driver = Driver(Rng()).start()
    driver.add(0, writable=[1 << 20])
    assert driver.used(0) == [MAX_REQUEST]


def test_event_index_and_indirect():
    driver = Driver(Rng(), features=EVENT_IDX | 1 << 28).start()
    driver.memory.write_int(driver.queues[0].available + 4 + 2 * 64, 2, 2)
    for _ in range(3):
        driver.add(0, writable=[8], indirect=True, notify=False)
    driver.notify(0)
    assert driver.used(0) == [8, 8, 8] and driver.edges == 1
