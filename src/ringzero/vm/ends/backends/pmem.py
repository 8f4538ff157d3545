"""A file behind a device of persistent memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import partial

from ringzero.config.devices.pmem import PmemConfig
from ringzero.core.memory import GuestMemory
from ringzero.devices.virtio.kinds.pmem import Pmem
from ringzero.disk.storage import FileStorage
from ringzero.errors import DiskError, HostError, StateError
from ringzero.host.files import host_error
from ringzero.vm.ends.backend import BACKENDS, Backend

# What Linux maps as one, and takes memory of this kind by.
_ALIGNMENT = 2 << 20


def room_for(devices: Sequence[PmemConfig]) -> list[int]:
    """Return how much guest-physical memory each of these takes, in bytes. Raises HostError."""
    return [-(-_size_of(device) // _ALIGNMENT) * _ALIGNMENT for device in devices]


def _size_of(device: PmemConfig) -> int:
    try:
        descriptor = os.open(device.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            # A block device has no other size.
            size = os.lseek(descriptor, 0, os.SEEK_END)
        finally:
            os.close(descriptor)
    except OSError as fault:
        raise host_error(fault, "open", device.path) from fault
    if not size:
        raise HostError(
            f"persistent memory {device.path} is empty",
            hint=f"give it a size: truncate -s 64M {device.path}",
            path=device.path,
        )
    return size


@BACKENDS.register("pmem")
class PmemBackend(Backend):
    """The device, and the file, which the machine's memory has mapped (`place`).

    Raises DiskError.
    """

    def __init__(self, config: PmemConfig, name: str, content: object) -> None:
        self._file = FileStorage(config.path, read_only=config.read_only)
        self.device = self.pmem = Pmem(self._file)

    def place(self, memory: GuestMemory, places: Iterator[tuple[int, int]]) -> None:
        """Have the file in guest-physical memory. Raises HostError."""
        file, (base, size) = self._file, next(places)
        # One that has grown since there was room made for it is cut off.
        memory.map_file(base, file.fd, min(file.size, size), shared=not file.read_only)
        self.pmem.place(base, size)
        self._written = partial(memory.has_written_file, base)

    def check_copied(self, *, same_files: bool) -> None:
        file = self._file
        if not file.read_only and not same_files:
            raise StateError(
                "a machine with persistent memory that it writes to is not copied: the file would "
                "be two machines'",
                hint="attach it read-only (--pmem FILE,ro), or use a disk (--disk FILE)",
                path=file.path,
            )
        if file.read_only and self._written():
            raise StateError(
                "the guest has written to persistent memory that is read-only, which no copy has",
                hint="have the guest mount it read-only (ext4: ro,noload)",
                path=file.path,
            )

    def close(self) -> None:
        # What a guest has written and not asked a flush for is kept as well as a disk's.
        with contextlib.suppress(DiskError):
            self._file.flush()
        self._file.close()
