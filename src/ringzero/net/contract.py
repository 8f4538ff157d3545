"""What a network is to a machine's interface: it fetches frames, delivers others, has a link.

A network is one module of `ringzero.net.networks`, named as the user names it:

    @NETWORKS.register("socket")
    class SocketNetwork(Network): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from ringzero.config.devices.net import NetConfig
from ringzero.config.ports import Forward
from ringzero.core.frames import Frame
from ringzero.errors import ConflictError
from ringzero.host.service import OnFault
from ringzero.registry import Registry


class Port(Protocol):
    """The machine's interface (`ringzero.devices.virtio.kinds.net.Net`); from any thread."""

    def fetch(self, handle: Callable[[Frame], None], limit: int, *, coalesce: bool = False) -> bool:
        """Call `handle` for frames of the machine's, up to about `limit` of them.

        A frame's bytes are the machine's own memory, good only during the call. Returns
        whether more frames may wait; if not, `Network.wake` will tell of the next one.
        One thread at a time.

        With `coalesce` the machine is not interrupted for a single small frame that has left,
        but with the next thing that it hears: whoever says so calls `settle` some
        milliseconds later.
        """
        ...

    def settle(self) -> None:
        """Interrupt the machine for what has left, where that was put off."""
        ...

    def deliver(self, frames: Sequence[Frame]) -> int:
        """Take frames for the machine; return how many of them, from the first on.

        Where it is not all of them, `Network.wake` tells of room. The bytes of a frame that
        was taken may not change any more.
        """
        ...

    def set_link(self, up: bool) -> None:
        """Hear whether frames find their way."""
        ...


class Network(ABC):
    """One end of a network, for one machine. The link is down until it says otherwise.

    `wake` is called under the interface's lock, from any thread: it may not wait.
    Raises ConfigError, ConflictError and HostError where it cannot be what `config` says.
    """

    # Hears of an exception that ends a thread of the network's.
    on_fault: OnFault | None = None

    def __init__(self, config: NetConfig) -> None:
        self.config = config
        self.port: Port

    @abstractmethod
    def wake(self) -> None:
        """Hear that the port has frames to fetch, or takes frames again."""

    @abstractmethod
    def start(self) -> None:
        """Begin; `port` is known."""

    @abstractmethod
    def close(self) -> None:
        """Give threads and host resources back."""

    @abstractmethod
    def leave(self) -> None:
        """In a forked process: let go of host resources, which stay the original's."""

    def forward(self, forward: Forward) -> Forward:
        """Forward a port of the host; return it with the port that it got.

        From any thread. Raises InvalidValueError, ConflictError where the port is taken or this
        network forwards none, HostError.
        """
        raise self._no_ports()

    def unforward(self, forward: Forward) -> None:
        """Forward a port no longer; connections that are up go on. Raises NotFoundError."""
        raise self._no_ports()

    def forwards(self) -> list[Forward]:
        """Return the ports of the host that lead to this machine."""
        return []

    def connections(self) -> tuple[bytes, ...]:
        """Return the machine's connections that end in this network, for its copies to lose."""
        return ()

    def inherit(  # noqa: B027 - a cable's connections are others'
        self, connections: tuple[bytes, ...], mac: bytes
    ) -> None:
        """Hear that the machine is a copy of one that had `connections`, and the address `mac`.

        They are the original's: they are reset in the guest once it runs.
        """

    def counters(self) -> dict[str, int]:
        """Return what this end counts: "dropped" frames, and what a kind has besides.

        From any thread.
        """
        return {}

    def _no_ports(self) -> ConflictError:
        return ConflictError(
            f"the network {self.config.network!r} forwards no ports",
            hint="a machine with --net user, or on a network by its name, has them",
        )


NETWORKS: Registry[type[Network]] = Registry("network", "ringzero.net.networks")
