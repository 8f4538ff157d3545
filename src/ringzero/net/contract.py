"""What a network is to a machine's interface: frames go in, frames come out, a link is up or not.

A network is one module of this package, named as the user names it:

    @NETWORKS.register("socket")
    class SocketNetwork(Network): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from ringzero.config.devices.net import NetConfig
from ringzero.registry import Registry


class Port(Protocol):
    """The machine's interface (`ringzero.devices.virtio.kinds.net.Net`); from any thread."""

    def deliver(self, frame: bytes) -> bool:
        """Take a frame; False when there is no room, and `Network.room` will tell."""
        ...

    def set_link(self, up: bool) -> None:
        """Hear whether frames find their way."""
        ...


class Network(ABC):
    """One end of a network, for one machine. The link is down until it says otherwise.

    `send` and `room` are called under the interface's lock: they may not wait,
    nor call the port back. Raises ConfigError, ConflictError and HostError where
    it cannot be what `config` says.
    """

    def __init__(self, config: NetConfig) -> None:
        self.config = config
        self.port: Port

    @abstractmethod
    def send(self, frame: bytes) -> None:
        """Take a frame of the machine's (an Ethernet frame without its checksum), or drop it."""

    @abstractmethod
    def room(self) -> None:
        """Hear that the port takes frames again."""

    @abstractmethod
    def start(self) -> None:
        """Begin; `port` is known."""

    @abstractmethod
    def close(self) -> None:
        """Give threads and host resources back."""

    @abstractmethod
    def leave(self) -> None:
        """In a forked process: let go of host resources, which stay the original's."""


NETWORKS: Registry[type[Network]] = Registry("network", "ringzero.net.networks")
