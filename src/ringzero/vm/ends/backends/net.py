"""A network interface and the network that it is connected to."""

from __future__ import annotations

from ringzero.config.devices.net import NetConfig
from ringzero.devices.virtio.kinds.net import Net
from ringzero.errors import ConfigError
from ringzero.net.contract import NETWORKS
from ringzero.vm.ends.backend import BACKENDS, Backend


@BACKENDS.register("net")
class NetBackend(Backend):
    """Raises NotFoundError for an unknown network, ConflictError where another has its sockets."""

    def __init__(self, config: NetConfig, name: str, content: object) -> None:
        if config.mac is None:
            raise ConfigError([f"the network interface {name} has no MAC address"])
        self._mac = bytes.fromhex(config.mac.replace(":", ""))
        self._network = NETWORKS.get(config.network)(config)
        self.device = self._interface = Net(self._mac, self._network, config.mtu)
        self._network.port = self._interface

    def start(self) -> None:
        self._network.start()

    def renew(self) -> None:
        self._interface.renew(self._mac)

    def leave(self) -> None:
        self._network.leave()

    def close(self) -> None:
        self._network.close()
