"""What every network of the registry does, whatever it is."""

import importlib
import struct
import subprocess

import pytest

from ringzero.config.devices.net import NetConfig
from ringzero.core.frames import Frame
from ringzero.errors import HostError
from ringzero.net.contract import NETWORKS

# A connection of a copy's original: the guest's address and its peer's, ports, sequence numbers.
PACKED = (bytes((10, 0, 2, 15, 10, 0, 2, 2)) + struct.pack(">HHII", 40000, 80, 1, 1),)
TARGETS = {"none": "", "socket": "{}/s", "bridge": "rzcontract"}


def target(name, place):
    """Return an argument for a network: one from above, or that its own test names."""
    if name in TARGETS:
        return TARGETS[name].format(place)
    return importlib.import_module(f"tests.net.networks.test_{name}").TARGET.format(place)


@pytest.fixture(autouse=True)
def bridge(request):
    """Make the bridge, where this user may, for the network that wants one."""
    names = request.node.callspec.params.values() if hasattr(request.node, "callspec") else ()
    if "bridge" not in names or not _ip("link", "add", TARGETS["bridge"], "type", "bridge"):
        yield
        return
    yield
    _ip("link", "del", TARGETS["bridge"])


def _ip(*words):
    try:
        return not subprocess.run(["ip", *words], capture_output=True, check=False).returncode
    except FileNotFoundError:
        return False


def opened(name, place):
    """Return the network, or skip where this user may not have it."""
    try:
        return NETWORKS.get(name)(NetConfig(name, target(name, place)))
    except HostError as fault:
        pytest.skip(fault.message)


class Port:
    """Keeps what it gets."""

    def __init__(self):
        self.frames = []
        self.up = False

    def fetch(self, handle, limit, *, coalesce=False):
        handle(Frame(bytes(60)))
        return False

    def deliver(self, frames):
        self.frames += frames
        return len(frames)

    def settle(self):
        pass

    def set_link(self, up):
        self.up = up


@pytest.mark.parametrize("name", sorted(NETWORKS.names()))
@pytest.mark.parametrize("begun", [False, True])
def test_life(name, begun, tmp_path):
    network = opened(name, tmp_path)
    network.port = Port()
    if begun:
        network.start()
    network.wake()
    network.close()


def test_a_copy_hears_of_the_ends_of_connections_before_it_runs():
    """Its first instructions may take the address away that the ends are sent to."""
    network = NETWORKS.get("user")(NetConfig("user", mac="02:00:00:00:00:01"))
    network.port = Port()
    try:
        network.inherit(PACKED, bytes(6))
        network.start()
        assert [frame.data()[-20 + 13] & 4 for frame in network.port.frames] == [4, 4]
    finally:
        network.close()


@pytest.mark.parametrize("name", sorted(NETWORKS.names()))
def test_a_forked_process_lets_go(name, tmp_path):
    network = opened(name, tmp_path)
    network.port = Port()
    network.leave()
