"""A disk image behind a virtio block device."""

from __future__ import annotations

from ringzero.config.devices.disk import DiskConfig
from ringzero.devices.virtio.kinds.block import Block, Throttle
from ringzero.disk import open_disk
from ringzero.disk.instant import InstantDisk, LiveDisk
from ringzero.vm.ends.backend import BACKENDS, Backend


@BACKENDS.register("disk")
class DiskBackend(Backend):
    """The image of the description; or, for a copy, a disk of its own with `content`.

    Raises DiskError.
    """

    def __init__(self, config: DiskConfig, name: str, content: InstantDisk | None) -> None:
        if content is not None:
            self.disk = content.grow()
        else:
            image = open_disk(config.path, format=config.format, read_only=config.read_only)
            self.disk = LiveDisk(image)
        self._live = self.disk
        self.device = self._block = Block(self.disk, identity=name)

    def exchange(self, config: DiskConfig) -> None:
        """Put another image behind the device, which stands still. Raises DiskError."""
        image = open_disk(config.path, format=config.format, read_only=config.read_only)
        try:
            self._live.exchange(image)
        except BaseException:
            image.close()
            raise
        self._block.exchanged()

    def throttle(self, throttle: Throttle | None) -> None:
        """Limit the guest's requests from now on."""
        self._block.throttle(throttle)

    def close(self) -> None:
        self._live.close()
