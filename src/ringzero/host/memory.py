"""Memory from the operating system: shared, sparse, with a known host address."""

from __future__ import annotations

import ctypes
import mmap
import os

from ringzero.errors import HostError


class SharedMemory:
    """`size` bytes of zeroed memory behind a memfd, mapped once.

    `fd` can be mapped again (by KVM, a forked machine, a helper process);
    `view` is the whole mapping; `address` is where it lies in this process.
    Pages take no host memory until they are touched. Raises HostError.
    """

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        try:
            self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size)
        except (OSError, ValueError, OverflowError) as cause:
            raise HostError(
                f"no {size} bytes of memory for {name}",
                hint="give the machine less --memory",
                size=size,
            ) from cause
        self.view = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def close(self) -> None:
        """Give the memory back; the mapping itself goes with its last user."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
