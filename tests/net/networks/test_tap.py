"""The tap network against the host's own network stack, where this user may have one."""

import socket
import subprocess
import time

import pytest

from ringzero.config.devices.net import NetConfig
from ringzero.core.frames import Frame
from ringzero.errors import ConfigError, ConflictError, HostError
from ringzero.net.networks.bridge import BridgeNetwork
from ringzero.net.networks.tap import TapNetwork

TARGET = "rzcontract"
GUEST = bytes.fromhex("020000000001")


class Port:
    """A machine's interface that keeps what it gets."""

    def __init__(self):
        self.waiting, self.got = [], []

    def fetch(self, handle, limit, *, coalesce=False):
        while self.waiting:
            handle(self.waiting.pop(0))
        return False

    def deliver(self, frames):
        self.got += [frame.data() for frame in frames]
        return len(frames)

    def set_link(self, up):
        self.up = up


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


@pytest.fixture
def tap():
    try:
        network = TapNetwork(NetConfig("tap", "rztest0"))
    except HostError as fault:
        pytest.skip(fault.message)
    network.port = Port()
    network.start()
    if not (
        ip("addr", "add", "10.98.0.1/24", "dev", "rztest0") and ip("link", "set", "rztest0", "up")
    ):
        network.close()
        pytest.skip("this user may not set interfaces up")
    yield network
    network.close()


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.01)


def test_the_host_asks_and_answers(tap):
    request = b"\xff" * 6 + GUEST + bytes.fromhex("0806000108000604000102") + GUEST[1:]
    request += socket.inet_aton("10.98.0.2") + bytes(6) + socket.inet_aton("10.98.0.1")
    tap.port.waiting.append(Frame(request))
    tap.wake()
    until(lambda: any(data[12:14] == b"\x08\x06" and data[21] == 2 for data in tap.port.got))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.sendto(b"to the guest", ("10.98.0.2", 7))
    until(lambda: any(data.endswith(b"to the guest") for data in tap.port.got))


def test_one_machine_has_it(tap):
    with pytest.raises(ConflictError, match="another machine has"):
        TapNetwork(NetConfig("tap", "rztest0"))


@pytest.mark.parametrize("name", ["", "a/b", "x" * 16])
def test_names_that_cannot_be(name):
    with pytest.raises(ConfigError):
        TapNetwork(NetConfig("tap", name))


def test_a_bridge_that_is_none():
    with pytest.raises(HostError, match="no bridge nix"):
        BridgeNetwork(NetConfig("bridge", "nix"))
    with pytest.raises(ConfigError):
        BridgeNetwork(NetConfig("bridge", ""))


def test_a_port_of_a_bridge():
    if not ip("link", "add", "rzbr0", "type", "bridge"):
        pytest.skip("no bridges here")
    try:
        network = BridgeNetwork(NetConfig("bridge", "rzbr0"))
        done = subprocess.run(
            ["ip", "link", "show", "master", "rzbr0"], capture_output=True, check=True
        )
        assert network.name.encode() in done.stdout
        network.close()
    finally:
        ip("link", "del", "rzbr0")
