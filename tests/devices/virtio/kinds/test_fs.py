"""The device that carries FUSE, with a server that can be held."""

import struct
import threading
import time

import pytest

from ringzero.devices.virtio import fileserver
from ringzero.devices.virtio.fileserver import FsState
from ringzero.devices.virtio.kinds.fs import Fs
from ringzero.errors import StateError
from tests.devices.specimens import virtio
from tests.devices.virtio.driver import Driver

LONG, LOCK, ECHO = 1, 2, 3


class Server:
    """Echoes the request behind its header; LONG waits for `go`, LOCK for `free`."""

    def __init__(self):
        self.go, self.free = threading.Event(), False
        self.threads, self.resets, self.restored = [], 0, None
        self.deferred = []

    def is_long(self, header):
        return header[4:5] == bytes([LONG])

    def defer(self, header):
        self.deferred.append(header[4])

    def serve(self, readable, writable):
        self.threads.append(threading.current_thread())
        data = b"".join(map(bytes, readable))
        if len(data) < 40:
            return 0
        if data[4] == LONG:
            assert self.go.wait(10)
        if data[4] == LOCK and not self.free:
            return None
        if not writable:
            return 0
        count = min(len(data), len(writable[0]))
        writable[0][:count] = data[:count]
        return count

    def reset(self):
        self.resets += 1

    def save(self):
        return {"nodes": 3}

    def restore(self, saved):
        self.restored = saved


def specimen():
    """For the contract suite: one request is answered, and another waits for a lock."""

    def work(driver):
        driver.start()
        driver.add(1, readable=[request(ECHO)], writable=[64])
        driver.add(1, readable=[request(LOCK)], writable=[64])

    return virtio("fs", Fs("tag", Server()), work)


def request(kind):
    return struct.pack("<II32x", 40, kind) + b"body"


def made():
    server = Server()
    device = Fs("tag", server)
    return server, device, Driver(device).start()


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def answers(driver, count=1):
    found = []
    until(lambda: found.extend(driver.used(1)) or len(found) >= count)
    return found


def test_the_tag_and_the_number_of_queues():
    _, device, driver = made()
    assert device.config() == b"tag".ljust(36, b"\0") + struct.pack("<I", 1)
    assert driver.read(0x08) == 26
    for tag in ("", "x" * 37):
        with pytest.raises(ValueError, match="tag"):
            Fs(tag, Server())


def test_short_requests_are_served_where_they_ring_and_long_ones_beside():
    server, device, driver = made()
    driver.add(1, readable=[request(LONG)], writable=[64])
    (place,) = driver.add(1, readable=[request(ECHO)], writable=[64])
    assert answers(driver) == [44]
    assert driver.memory.read(place, 44) == request(ECHO)
    assert server.threads[-1] is threading.current_thread()
    assert server.deferred == [LONG]
    server.go.set()
    assert answers(driver) == [44]
    device.close()


def test_a_host_that_is_slow_twice_is_waited_for_beside(monkeypatch):
    server, device, driver = made()
    here = threading.current_thread()

    def ask():
        driver.add(1, readable=[request(ECHO)], writable=[64])
        assert answers(driver) == [44]
        return server.threads[-1] is here

    def slowly():
        monkeypatch.setattr(fileserver, "QUICK", -1.0)
        assert ask()
        monkeypatch.setattr(fileserver, "QUICK", 1000.0)

    # Once may be another process's turn on the CPU.
    slowly()
    assert all(ask() for _ in range(fileserver.BACK_OFF))
    slowly()
    assert all(ask() for _ in range(fileserver.BACK_OFF - 2))
    slowly()
    assert not any(ask() for _ in range(fileserver.BACK_OFF))
    assert ask()
    device.close()


def test_what_waits_for_a_lock_is_tried_again():
    server, device, driver = made()
    driver.add(1, readable=[request(LOCK)], writable=[64])
    until(lambda: len(server.threads) > 3)
    assert driver.used(1) == []
    server.free = True
    assert answers(driver) == [44]
    device.close()


def test_a_pause_waits_for_long_requests_but_not_for_locks():
    server, device, driver = made()
    driver.add(1, readable=[request(LOCK)], writable=[64])
    driver.add(1, readable=[request(LONG)], writable=[64])
    threading.Timer(0.05, server.go.set).start()
    driver.transport.pause()
    assert driver.used(1) == [44]
    driver.acknowledge()
    state, transport = device.save(), driver.transport.save()
    assert len(state.parked) == 1
    # A copy goes on waiting, in its own server.
    other = Server()
    copy = Fs("tag", other)
    second = Driver(copy, memory=driver.memory)
    second.transport.restore(transport)
    copy.restore(state)
    assert other.restored == {"nodes": 3}
    assert copy.save() == state
    other.free = True
    second.transport.resume()
    until(lambda: second.edges)
    copy.close()
    device.close()


def test_a_reset_waits_for_the_request_at_the_server_and_drops_its_answer():
    server, device, driver = made()
    driver.add(1, readable=[request(LONG)], writable=[64])
    until(lambda: server.threads)
    resets = server.resets
    threading.Timer(0.05, server.go.set).start()
    driver.write(0x70, 0)
    assert server.go.is_set()
    assert server.resets == resets + 1
    assert driver.edges == 0
    device.close()


def test_a_parked_head_that_makes_no_sense_is_refused():

    _, device, _ = made()
    with pytest.raises(StateError):
        device.restore(FsState({}, (70000,)))
    device.close()
