"""The devices that a description asks for, each with its backend on the host."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ringzero.config.machine import MachineConfig
from ringzero.core.memory import GuestMemory
from ringzero.devices.virtio.device import VirtioDevice
from ringzero.host.service import OnFault
from ringzero.vm.ends.backend import Backend, open_backend

if TYPE_CHECKING:
    from ringzero.disk.instant import InstantDisk, LiveDisk
    from ringzero.vm.ends.vsock import VsockSockets


class Devices:
    """Backends by their devices' names in the machine, in the order of the description.

    `contents` is given for a copied machine: what its disks hold, in their order. Raises what
    the backends raise, and then has closed those that were open.
    """

    def __init__(
        self, config: MachineConfig, contents: Sequence[InstantDisk] | None = None
    ) -> None:
        self.backends: dict[str, Backend] = {}
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for number, device in config.numbered():
                if device.joined and number:
                    self.backends[device.name_of(0)].join(device, number)
                    continue
                stores = contents is not None and device.kind == "disk"
                content = contents[number] if contents and stores else None
                name = device.name_of(number)
                backend = self.backends[name] = open_backend(device, name, content)
                self._closing.callback(backend.close)
            undo.pop_all()

    @property
    def devices(self) -> dict[str, VirtioDevice[Any]]:
        """What the board places, by name."""
        return {
            name + suffix: device
            for name, backend in self.backends.items()
            for suffix, device in backend.devices.items()
        }

    @property
    def disks(self) -> tuple[LiveDisk, ...]:
        """The disks, in their order."""
        return tuple(b.disk for b in self.backends.values() if b.disk is not None)

    @property
    def vsock(self) -> VsockSockets | None:
        """The host's sockets of the socket device, where there is one."""
        found: Any = self.backends.get("vsock")
        return None if found is None else found.sockets

    def place(self, memory: GuestMemory, files: Sequence[tuple[int, int]]) -> None:
        """Have the files of devices that map some in `memory`, at (base, size) each. HostError."""
        places = iter(files)
        for backend in self.backends.values():
            backend.place(memory, places)

    def check_copied(self, *, same_files: bool) -> None:
        """Raise StateError where a copy would not have what the machine has.

        With `same_files` it comes in the machine's place, and has its files.
        """
        for backend in self.backends.values():
            backend.check_copied(same_files=same_files)

    def start(self, on_fault: OnFault) -> None:
        """Begin to move bytes; `on_fault` hears of an exception that ends a thread of theirs."""
        for backend in self.backends.values():
            backend.start(on_fault)

    def renew(self) -> None:
        """Give the devices of a copy addresses of their own; their states have been restored."""
        for backend in self.backends.values():
            backend.renew()

    def leave(self) -> None:
        """In a forked process: let go of what stays the original's."""
        for backend in self.backends.values():
            backend.leave()

    def close(self) -> None:
        """End it; the devices have been closed."""
        self._closing.close()
