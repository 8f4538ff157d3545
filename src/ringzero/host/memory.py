"""Memory from the operating system: shared, sparse, with a known host address."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import weakref

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

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` to `offset`; for much data twice as quick as through `view`.

        Pages that were never touched cost no page fault each. Raises HostError.
        """
        rest = memoryview(data)
        try:
            while rest:
                count = os.pwrite(self.fd, rest, offset)
                offset, rest = offset + count, rest[count:]
        except OSError as cause:
            raise HostError(
                f"the host has no memory for the guest: {cause.strerror}",
                hint="give the machine less --memory",
            ) from cause

    def clear(self, offset: int, count: int) -> None:
        """Make `count` bytes zero; pages that were never touched stay so."""
        end = offset + count
        while offset < end:
            try:
                start = os.lseek(self.fd, offset, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but holes from here on
                return
            if start >= end:
                return
            offset = min(os.lseek(self.fd, start, os.SEEK_HOLE), end)
            self.view[start:offset] = bytes(offset - start)

    def close(self) -> None:
        """Give the memory back; where views of it are left, with the last of them."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        with contextlib.suppress(BufferError):
            self.view.release()
            self._map.close()


# Translated code refers to itself by 31-bit absolute addresses.
_LOW_LIMIT = 1 << 31
_MAP_32BIT = 0x40  # x86 Linux: map in the low 2 GiB
_MAP_NORESERVE = 0x4000
_MAP_FIXED_NOREPLACE = 0x100000


class ExecutableMemory:
    """`size` bytes of memory below 2 GiB that can be written and run.

    They lie at `wanted` where that is free, else anywhere. Raises HostError.
    """

    def __init__(self, size: int, wanted: int = 0) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
            ctypes.c_long,
        ]  # fmt: skip
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.size = size
        protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_32BIT | _MAP_NORESERVE
        address = libc.mmap(wanted, size, protection, flags | _MAP_FIXED_NOREPLACE, -1, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            address = libc.mmap(None, size, protection, flags, -1, 0)
        if address in (None, ctypes.c_void_p(-1).value) or address + size > _LOW_LIMIT:
            raise HostError(
                "the host gives no executable memory for translated code",
                hint="is a security policy (SELinux, grsecurity) forbidding writable code?",
                size=size,
            )
        self.address: int = address
        # Whoever forgets to close must not use up the little that there is below 2 GiB.
        self._release = weakref.finalize(self, libc.munmap, address, size)

    def close(self) -> None:
        """Give the memory back."""
        self._release()
