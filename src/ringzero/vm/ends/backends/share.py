"""The shared folders of a machine: one virtio-fs device, one server, a tree for each."""

from __future__ import annotations

import contextlib

from ringzero.config.device import DeviceConfig
from ringzero.config.devices.share import CACHES, ShareConfig
from ringzero.devices.virtio.kinds.fs import Fs
from ringzero.share.contract import BACKENDS as TREES
from ringzero.share.contract import Tree
from ringzero.share.fuse.server import FuseServer
from ringzero.vm.ends.backend import BACKENDS, Backend

# By which the guest mounts them (`ringzero/image/guest/init`).
TAG = "ringzero"


@BACKENDS.register("share")
class ShareBackend(Backend):
    """Raises ConfigError where a folder is missing, HostError where it cannot be shared."""

    def __init__(self, config: DeviceConfig, name: str, content: object) -> None:
        self.server = FuseServer()
        with contextlib.ExitStack() as undo:
            undo.callback(self.server.close)
            self.join(config, 0)
            self.device = Fs(TAG, self.server)
            undo.pop_all()

    def join(self, config: DeviceConfig, number: int) -> None:
        assert isinstance(config, ShareConfig)
        if config.target:
            number = number if config.number is None else config.number
            self.server.add(number, open_tree(config), config.target)

    def leave_out(self, number: int) -> None:
        """Share a folder no longer: the guest gets ESTALE for what it still has of it."""
        self.server.remove(number)

    def leave(self) -> None:
        # The original's descriptors stay open there.
        self.server.close()

    def close(self) -> None:
        self.server.close()


def open_tree(config: ShareConfig) -> Tree:
    """Return the tree that a description names. Raises NotFoundError, and what opening does."""
    kind = TREES.get(config.backend)
    tree = kind.open(str(config.path), read_only=config.read_only, ownership=config.owners)
    tree.validity = CACHES[config.cache]
    # An overlay lies on what is the guest's root.
    tree.joined = config.target == "/"
    return tree
