"""No network: an interface whose cable is not plugged in."""

from __future__ import annotations

from ringzero.config.devices.net import NetConfig
from ringzero.core.frames import Frame
from ringzero.errors import ConfigError
from ringzero.net.contract import NETWORKS, Network

_BATCH = 256


@NETWORKS.register("none")
class NoNetwork(Network):
    """Drops every frame."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__(config)
        if config.target or config.listen:
            raise ConfigError(["the network 'none' leads nowhere"], hint="write --net none")

    def wake(self) -> None:
        while self.port.fetch(_drop, _BATCH):
            pass

    def start(self) -> None:
        """There is nothing to begin."""

    def close(self) -> None:
        """There is nothing to give back."""

    def leave(self) -> None:
        """There is nothing to let go of."""


def _drop(frame: Frame) -> None:
    """Drop it."""
