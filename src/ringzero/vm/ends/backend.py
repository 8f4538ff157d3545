"""What a backend is: the host's side of one device of a machine.

A kind of device without a module in `ringzero.vm.ends.backends` needs none on the host's side but
itself: it is made by `VirtioDevice.from_config`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ringzero.config.device import DeviceConfig
from ringzero.core.memory import GuestMemory
from ringzero.devices.virtio.device import VIRTIO_DEVICES, VirtioDevice
from ringzero.host.service import OnFault
from ringzero.registry import Registry

if TYPE_CHECKING:
    from ringzero.disk.instant import InstantDisk, LiveDisk


class Backend:
    """Makes the device of a description, and holds what the device stands on.

    `name` is the device's in the machine; `content` is what a copied machine's disk holds.
    Raises HostError and what the kind's own parts raise.
    """

    # For the board.
    device: VirtioDevice[Any]
    # What a device that stores something stores it on: saved, forked and taken back with it.
    disk: LiveDisk | None = None

    def __init__(self, config: DeviceConfig, name: str, content: InstantDisk | None) -> None:
        self.device = VIRTIO_DEVICES.get(config.kind).from_config(config)

    @property
    def devices(self) -> dict[str, VirtioDevice[Any]]:
        """The devices, by what stands behind the name in the machine; most have one."""
        return {"": self.device}

    def join(self, config: DeviceConfig, number: int) -> None:
        """Take up a further description of a kind whose devices are all one (`joined`)."""
        raise NotImplementedError

    def place(self, memory: GuestMemory, places: Iterator[tuple[int, int]]) -> None:
        """Take the next (base, size) for what is to lie in `memory`, if there is such a thing."""

    def check_copied(self, *, same_files: bool) -> None:
        """Raise StateError where a copy of the machine, which stands still, would be wrong.

        With `same_files` the copy comes in its place, and has the same files.
        """

    def start(self, on_fault: OnFault) -> None:
        """Begin to move bytes; the guest runs. `on_fault` hears what ends a thread of ours."""
        for device in self.devices.values():
            device.on_fault = on_fault

    def renew(self) -> None:
        """Give the device of a copy its own addresses; its state has been restored."""

    def leave(self) -> None:
        """In a forked process: let go of what stays the original's."""

    def close(self) -> None:
        """End it; the device has been closed."""


BACKENDS: Registry[type[Backend]] = Registry("device", "ringzero.vm.ends.backends")


def open_backend(config: DeviceConfig, name: str, content: InstantDisk | None) -> Backend:
    """Return the backend of `config`. Raises NotFoundError for a kind without any device."""
    kind = BACKENDS.get(config.kind) if config.kind in BACKENDS else Backend
    return kind(config, name, content)
