"""A network interface and the network that it is connected to."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ringzero.config.devices.net import NetConfig
from ringzero.devices.virtio.kinds.net import Net
from ringzero.errors import ConfigError
from ringzero.host.service import OnFault
from ringzero.net.contract import NETWORKS, Network
from ringzero.net.lazy import LazyNetwork
from ringzero.vm.ends.backend import BACKENDS, Backend

if TYPE_CHECKING:
    from ringzero.config.ports import Forward
    from ringzero.net.limit import LimitedPort, Limits
    from ringzero.net.service import ServicePort
    from ringzero.net.stack.localservice import Respond


@BACKENDS.register("net")
class NetBackend(Backend):
    """Raises NotFoundError for an unknown network, ConflictError where another has its sockets."""

    def __init__(self, config: NetConfig, name: str, content: object) -> None:
        if config.mac is None:
            raise ConfigError([f"the network interface {name} has no MAC address"])
        self.config = config
        self._mac = bytes.fromhex(config.mac.replace(":", ""))
        self.network = open_network(config)
        self._limited: LimitedPort | None = None
        self._service: ServicePort | None = None
        # Connections of networks that the interface was unplugged from, which the guest has still.
        self._lost: tuple[bytes, ...] = ()
        # Known once the machine has begun.
        self._on_fault: OnFault | None = None
        self.device = self.interface = Net(self._mac, self, config.mtu, config.queues)
        self._plug(self.network)

    def wake(self) -> None:
        """Pass on what the interface says to its network."""
        self.network.wake()

    def start(self, on_fault: OnFault) -> None:
        super().start(on_fault)
        self._on_fault = on_fault
        self._start_network()

    def _start_network(self) -> None:
        self.network.on_fault = self._on_fault
        for port in (self._limited, self._service):
            if port is not None:
                port.on_fault = self._on_fault
        self.network.start()

    def connections(self) -> tuple[bytes, ...]:
        """Return the machine's connections that end in its network."""
        return self.network.connections()

    def renew(self) -> None:
        device = self.interface
        self.network.inherit(device.connections, device.mac)
        device.renew(self._mac)

    def leave(self) -> None:
        self.network.leave()
        for port in (self._limited, self._service):
            if port is not None:
                port.leave()

    def close(self) -> None:
        self.network.close()
        self._unplug()

    def _plug(self, network: Network) -> None:
        """Give a network its port: the interface, behind the limits that it has."""
        config = self.config
        network.port = self.interface
        if config.rate is None and config.packet_rate is None:
            return
        from ringzero.core.buckets import Bucket
        from ringzero.net.limit import LimitedPort, Limits

        size = None if config.rate is None else Bucket(config.rate, 1.0, config.burst)
        packets = None if config.packet_rate is None else Bucket(config.packet_rate, 1.0)
        limits = Limits(size, packets)
        self._limited = LimitedPort(self.interface, network.wake, sent=limits, received=limits)
        network.port = self._limited

    def limit(self, sent: Limits, received: Limits) -> None:
        """Limit what the guest sends and gets, instead of what the description says.

        Once before the machine runs; then as often as one likes. Raises InvalidValueError.
        """
        from ringzero.net.limit import LimitedPort

        if self._limited is None:
            self._limited = LimitedPort(self.interface, self.network.wake)
            self.network.port = self._limited
        self._limited.limit(sent, received)

    def serve(self, address: bytes, mac: bytes, respond: Respond) -> None:
        """Have an HTTP server of ours at an IPv4 address before the network, for this guest alone.

        Once, before the machine runs, and after `limit`.
        """
        from ringzero.net.service import ServicePort

        port = self._limited or self.interface
        mtu = self.config.mtu
        self._service = ServicePort(port, self.network.wake, address, mac, respond, mtu=mtu)
        self.network.port = self._service

    def _unplug(self) -> None:
        if self._service is not None:
            self._service.close()
            self._service = None
        if self._limited is not None:
            self._limited.close()
            self._limited = None

    def connect(self, config: NetConfig) -> None:
        """Plug the interface into another network, as `config` says; its address stays.

        Connections by the old one are reset in the guest when there is a network again.
        Raises what opening that network does, and then nothing has changed.
        """
        network, old = open_network(config), self.network
        lost = self._lost + old.connections()
        with contextlib.ExitStack() as undo:
            undo.callback(network.close)
            old.close()
            self.interface.set_link(False)
            self._unplug()
            self.network, self.config = network, config
            self._plug(network)
            if config.routed and lost:
                network.inherit(lost, self.interface.mac)
            self._lost = () if config.routed else lost
            if self._on_fault is not None:
                self._start_network()
                # What the interface said meanwhile, the old one heard.
                network.wake()
            undo.pop_all()

    def forward(self, forward: Forward) -> Forward:
        """Forward a port of the host to the machine; raises as `Network.forward`."""
        return self.network.forward(forward)

    def counters(self) -> dict[str, int]:
        """Return frames and bytes since the start, as the machine sees them.

        "dropped" are frames that found no room, in the interface or on their network, which may
        count more (`Network.counters`).
        """
        device, counted = self.interface, self.network.counters()
        return {
            "received": device.received,
            "received_bytes": device.received_bytes,
            "sent": device.sent,
            "sent_bytes": device.sent_bytes,
            **counted,
            "dropped": device.dropped + counted.get("dropped", 0),
        }


def open_network(config: NetConfig) -> Network:
    """Return one machine's end of the network that `config` names.

    Raises NotFoundError, and what the network does.
    """
    if config.network == "user" and not config.ports and not config.allow and not config.target:
        return LazyNetwork(config)
    if config.network in NETWORKS:
        return NETWORKS.get(config.network)(config)
    from ringzero.net.named.client import NamedEnd

    return NamedEnd(config)
