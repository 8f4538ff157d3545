"""The shared folders of a machine: one device, or two, each with a server and a tree for each."""

from __future__ import annotations

import contextlib
from typing import Any

from ringzero.config.device import DeviceConfig
from ringzero.config.devices.share import BOTH, CACHES, NINEP, ShareConfig
from ringzero.devices.virtio.device import VirtioDevice
from ringzero.share.contract import BACKENDS as TREES
from ringzero.share.contract import Tree
from ringzero.share.server import ShareServer
from ringzero.vm.ends.backend import BACKENDS, Backend

# By which the guest mounts them (`ringzero/image/guest/share`).
TAG = "ringzero"


@BACKENDS.register("share")
class ShareBackend(Backend):
    """Raises ConfigError where a folder is missing, HostError where it cannot be shared."""

    def __init__(self, config: DeviceConfig, name: str, content: object) -> None:
        assert isinstance(config, ShareConfig)
        # Each server has trees of its own: a guest uses one of them.
        self._servers: list[ShareServer] = []
        self._devices: dict[str, VirtioDevice[Any]] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            if config.transport != NINEP:
                self._serve_fuse()
            if config.transport in (NINEP, BOTH):
                self._serve_ninep()
            self.join(config, 0)
            undo.pop_all()

    def _serve_fuse(self) -> None:
        from ringzero.devices.virtio.kinds.fs import Fs
        from ringzero.share.fuse.server import FuseServer

        server = FuseServer()
        self._servers.append(server)
        self._devices[""] = Fs(TAG, server)

    def _serve_ninep(self) -> None:
        from ringzero.devices.virtio.kinds.ninep import Ninep
        from ringzero.share.ninep.server import NinepServer

        server = NinepServer()
        self._servers.append(server)
        self._devices["-9p"] = Ninep(TAG, server)

    @property
    def devices(self) -> dict[str, VirtioDevice[Any]]:
        return self._devices

    def join(self, config: DeviceConfig, number: int) -> None:
        assert isinstance(config, ShareConfig)
        if not config.target:
            return
        number = number if config.number is None else config.number
        for server in self._servers:
            server.add(number, open_tree(config), config.target)

    def leave_out(self, number: int) -> None:
        """Share a folder no longer: the guest gets ESTALE for what it still has of it."""
        for server in self._servers:
            server.remove(number)

    def leave(self) -> None:
        # The original's descriptors stay open there.
        self.close()

    def close(self) -> None:
        for server in self._servers:
            server.close()


def open_tree(config: ShareConfig) -> Tree:
    """Return the tree that a description names. Raises NotFoundError, and what opening does."""
    kind = TREES.get(config.backend)
    tree = kind.open(str(config.path), read_only=config.read_only, ownership=config.owners)
    tree.validity = CACHES[config.cache]
    # An overlay lies on what is the guest's root.
    tree.joined = config.target == "/"
    return tree
