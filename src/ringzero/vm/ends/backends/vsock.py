"""A socket device and its Unix sockets on the host."""

from __future__ import annotations

from ringzero.config.devices.vsock import VsockConfig
from ringzero.devices.virtio.kinds.vsock import Vsock
from ringzero.errors import ConfigError
from ringzero.host.service import OnFault
from ringzero.vm.ends.backend import BACKENDS, Backend
from ringzero.vm.ends.vsock import VsockSockets


@BACKENDS.register("vsock")
class VsockBackend(Backend):
    """Raises ConflictError where another has the socket.

    `sockets` is None where the device has no path on the host.
    """

    def __init__(self, config: VsockConfig, name: str, content: object) -> None:
        if config.cid is None:
            raise ConfigError([f"the socket device {name} has no CID"])
        self._cid = config.cid
        self.sockets = VsockSockets(config.path) if config.path.name else None
        self.device = self._guest = Vsock(config.cid, self.sockets)
        if self.sockets is not None:
            self.sockets.connect(self._guest)

    def start(self, on_fault: OnFault) -> None:
        super().start(on_fault)
        if self.sockets is not None:
            self.sockets.on_fault = on_fault
            self.sockets.start()

    def renew(self) -> None:
        self._guest.renew(self._cid)

    def leave(self) -> None:
        if self.sockets is not None:
            self.sockets.leave()

    def close(self) -> None:
        if self.sockets is not None:
            self.sockets.close()
