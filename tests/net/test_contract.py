"""What every network of the registry does, whatever it is."""

import pytest

from ringzero.config.devices.net import NetConfig
from ringzero.net.contract import NETWORKS

TARGETS = {"none": "", "socket": "{}/s"}


class Port:
    def deliver(self, frame):
        return True

    def set_link(self, up):
        pass


@pytest.mark.parametrize("name", sorted(NETWORKS.names()))
@pytest.mark.parametrize("begun", [False, True])
def test_life(name, begun, tmp_path):
    target = TARGETS[name].format(tmp_path)
    network = NETWORKS.get(name)(NetConfig(name, target))
    network.port = Port()
    if begun:
        network.start()
    network.send(bytes(60))
    network.room()
    network.close()


@pytest.mark.parametrize("name", sorted(NETWORKS.names()))
def test_a_forked_process_lets_go(name, tmp_path):
    network = NETWORKS.get(name)(NetConfig(name, TARGETS[name].format(tmp_path)))
    network.port = Port()
    network.leave()
