"""userfaultfd(2): pages of a mapping that another process supplies as they are touched."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct

from ringzero.errors import HostError

# x86-64 system call; linux/userfaultfd.h.
_SYSCALL = 323
_API = struct.Struct("<QQQ")
_REGISTER = struct.Struct("<QQQQ")
_RANGE = struct.Struct("<QQ")
_IOC_API, _IOC_REGISTER, _IOC_UNREGISTER = 0xC018AA3F, 0xC020AA00, 0x8010AA01
_DEVICE, _IOC_NEW = "/dev/userfaultfd", 0xAA00
_VERSION = 0xAA
_EVENT_REMOVE = 1 << 3
_MISSING = 1


class Userfault:
    """A descriptor by which whoever has it supplies pages; `fd` is it.

    It tells of pages that were given back to the host (UFFD_EVENT_REMOVE), too. Whoever touches a
    page waits until it is there, also if nobody supplies it. Raises HostError.
    """

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self.fd = _open()
        try:
            fcntl.ioctl(self.fd, _IOC_API, _API.pack(_VERSION, _EVENT_REMOVE, 0))
        except OSError as fault:
            self.close()
            raise _refused(fault.errno or 0) from fault

    def register(self, address: int, size: int) -> None:
        """Have the missing pages of a mapping supplied. Raises HostError."""
        try:
            fcntl.ioctl(self.fd, _IOC_REGISTER, _REGISTER.pack(address, size, _MISSING, 0))
        except OSError as fault:
            raise _refused(fault.errno or 0) from fault
        self._ranges.append((address, size))

    def close(self) -> None:
        """Let go of it, while what was registered is mapped.

        Pages that are missing are zero from now on; who waits for one waits no longer.
        """
        for place in self._ranges:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self.fd, _IOC_UNREGISTER, _RANGE.pack(*place))
        os.close(self.fd)


def _open() -> int:
    """Return a new userfaultfd. Raises HostError."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    libc = ctypes.CDLL(None, use_errno=True)
    found = int(libc.syscall(_SYSCALL, flags))
    if found >= 0:
        return found
    number = ctypes.get_errno()
    # Since Linux 6.1 whoever may open this may have one, too.
    try:
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        raise _refused(number) from None
    try:
        return int(fcntl.ioctl(device, _IOC_NEW, flags))
    except OSError as fault:
        raise _refused(fault.errno or 0) from fault
    finally:
        os.close(device)


def _refused(number: int) -> HostError:
    hint = None
    if number in (errno.EPERM, errno.EACCES):
        hint = "as root, or with vm.unprivileged_userfaultfd=1 (sysctl)"
    return HostError(
        f"the host lets no other process supply memory: {os.strerror(number)}", hint=hint
    )
