"""What every network of the registry does, whatever it is."""

import importlib
import subprocess

import pytest

from ringzero.config.devices.net import NetConfig
from ringzero.core.frames import Frame
from ringzero.errors import HostError
from ringzero.net.contract import NETWORKS

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


@pytest.mark.parametrize("name", sorted(NETWORKS.names()))
def test_a_forked_process_lets_go(name, tmp_path):
    network = opened(name, tmp_path)
    network.port = Port()
    network.leave()
