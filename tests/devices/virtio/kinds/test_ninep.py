"""The device that carries 9p: what it says of itself; what it does is the file device's."""

import pytest

from ringzero.devices.virtio.kinds.ninep import Ninep
from tests.devices.specimens import virtio
from tests.devices.virtio.driver import Driver
from tests.devices.virtio.kinds.test_fs import ECHO, LOCK, Server, request


def specimen():
    """For the contract suite: one request is answered, and another waits for a lock."""

    def work(driver):
        driver.start()
        driver.add(0, readable=[request(ECHO)], writable=[64])
        driver.add(0, readable=[request(LOCK)], writable=[64])

    return virtio("ninep", Ninep("tag", Server()), work)


def test_the_tag_and_its_feature():
    device = Ninep("tag", Server())
    driver = Driver(device).start()
    assert device.config() == b"\3\0tag"
    assert driver.read(0x08) == 9
    assert device.features & 1
    for tag in ("", "x" * 65536):
        with pytest.raises(ValueError, match="tag"):
            Ninep(tag, Server())


def test_a_request_is_answered():
    device = Ninep("tag", Server())
    driver = Driver(device).start()
    (place,) = driver.add(0, readable=[request(ECHO)], writable=[64])
    assert driver.used(0) == [44]
    assert driver.memory.read(place, 44) == request(ECHO)
    device.close()
