"""A running machine's disks: another image behind one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringzero.config.devices.disk import DiskConfig
from ringzero.errors import InvalidValueError, NotFoundError
from ringzero.vm.ends.backends.disk import DiskBackend

if TYPE_CHECKING:
    from ringzero.vm.machine import Machine


def exchange(machine: Machine, number: int, config: DiskConfig) -> None:
    """Put another image behind a disk while the guest stands still; it is told of the size.

    Requests in flight are finished on the old one, which is then closed. Whether the guest may
    write stays as it is. Raises NotFoundError, InvalidValueError, DiskError.
    """
    parts = machine.parts
    backend = parts.devices.backends.get(DiskConfig.name_of(number))
    if not isinstance(backend, DiskBackend):
        raise NotFoundError(f"the machine has no disk {number}")
    if config.read_only != parts.config.disks[number].read_only:
        raise InvalidValueError("a disk that is read-only stays so, as does one that is not")
    with machine.frozen():
        backend.exchange(config)
        parts.config = parts.config.map_devices(
            lambda n, device: config if device.kind == "disk" and n == number else device
        )
