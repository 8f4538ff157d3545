"""A machine's ways to others: the devices that lead to sockets of the host, and these sockets."""

from __future__ import annotations

import contextlib
from typing import Any

from ringzero.config.devices.net import NetConfig
from ringzero.config.machine import MachineConfig
from ringzero.devices.virtio.device import VirtioDevice
from ringzero.devices.virtio.kinds.net import Net
from ringzero.devices.virtio.kinds.vsock import Vsock
from ringzero.net.contract import NETWORKS, Network
from ringzero.vm.ends.vsock import VsockSockets
from ringzero.vm.guest.identity import Identity


class Links:
    """What `config` asks for; `devices` are for the board, by name.

    Raises ConflictError where another has the sockets, HostError.
    """

    def __init__(self, config: MachineConfig) -> None:
        self.devices: dict[str, VirtioDevice[Any]] = {}
        self.vsock: VsockSockets | None = None
        self._closing = contextlib.ExitStack()
        vsock = config.vsock
        if vsock is not None and vsock.cid is not None:
            self.vsock = VsockSockets(vsock.path)
            self._closing.callback(self.vsock.close)
            self._socket_device = Vsock(vsock.cid, self.vsock)
            self.vsock.connect(self._socket_device)
            self.devices["vsock"] = self._socket_device
        # The interfaces and what they are connected to.
        self._cables: list[tuple[Net, bytes, Network]] = []
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for number, net in enumerate(config.nets):
                self._connect(net.name_of(number), net)
            undo.pop_all()

    def _connect(self, name: str, config: NetConfig) -> None:
        if config.mac is None:
            return
        network = NETWORKS.get(config.network)(config)
        self._closing.callback(network.close)
        mac = bytes.fromhex(config.mac.replace(":", ""))
        self.devices[name] = interface = Net(mac, network, config.mtu)
        network.port = interface
        self._cables.append((interface, mac, network))

    def renew(self, identity: Identity) -> None:
        """Give the devices of a clone addresses of its own; its state has been restored."""
        if self.vsock is not None:
            self._socket_device.renew(identity.cid)
        for interface, mac, _ in self._cables:
            interface.renew(mac)

    def start(self) -> None:
        """Begin to move bytes."""
        if self.vsock is not None:
            self.vsock.start()
        for *_, network in self._cables:
            network.start()

    def close(self) -> None:
        """End it; the devices have been closed."""
        self._closing.close()

    def leave(self) -> None:
        """In a forked process: let go of the sockets, which stay the original's."""
        if self.vsock is not None:
            self.vsock.leave()
        for *_, network in self._cables:
            network.leave()
