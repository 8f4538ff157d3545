"""The host calls below a disk image: holes, zero ranges, block devices, OFD locks.

Every function takes a file descriptor and touches only the bytes it is given.
Linux only: fallocate(2), ioctl_list(2), fcntl(2) "Open file description locks".
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import struct
from collections.abc import Callable, Iterator

# linux/falloc.h
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10

# linux/fs.h
_BLKDISCARD = 0x1277
_BLKZEROOUT = 0x127F
_BLKSSZGET = 0x1268

# linux/fcntl.h; the fcntl module of CPython 3.11 does not name them.
_F_OFD_GETLK = 36
_F_OFD_SETLK = 37
_FLOCK = struct.Struct("hhqqi4x")

# linux/magic.h, of file systems that write faster into space that is reserved: one call finds
# the place of many blocks. A tmpfs would fill the pages twice.
_EXT4_MAGIC = 0xEF53
_XFS_MAGIC = 0x58465342
_TMPFS_MAGIC = 0x01021994
# Of struct statfs, with room for all architectures' (asm-generic/statfs.h has 120 bytes).
_STATFS_SIZE = 256

# What the kernel answers when a file system or device cannot do it at all.
_CANNOT = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.ENODEV, errno.EPERM}

IOV_MAX = os.sysconf("SC_IOV_MAX")


@functools.cache
def _foreign_fallocate() -> tuple[Callable[..., int], Callable[[], int]]:
    """Return fallocate(2) and what reads its errno; most commands make no hole."""
    import ctypes

    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return call, ctypes.get_errno


def _fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    """Call fallocate(2); False when the file system cannot do it, OSError when it failed."""
    fallocate, get_errno = _foreign_fallocate()
    while fallocate(fd, mode, offset, length) != 0:
        code = get_errno()
        if code == errno.EINTR:
            continue
        if code in _CANNOT:
            return False
        raise OSError(code, os.strerror(code))
    return True


def _range_ioctl(fd: int, request: int, offset: int, length: int) -> bool:
    try:
        fcntl.ioctl(fd, request, struct.pack("=QQ", offset, length))
    except OSError as fault:
        if fault.errno in _CANNOT:
            return False
        raise
    return True


def punch_hole(fd: int, offset: int, length: int, *, device: bool = False) -> bool:
    """Give a range back to the host; False when it cannot. A file then reads zeroes there."""
    if device:
        return _range_ioctl(fd, _BLKDISCARD, offset, length)
    return _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int, *, device: bool = False) -> bool:
    """Make a range of the file read as zeroes, space kept; False when the host cannot."""
    if device:
        return _range_ioctl(fd, _BLKZEROOUT, offset, length)
    return _fallocate(fd, _ZERO_RANGE | _KEEP_SIZE, offset, length)


def preallocate(fd: int, offset: int, length: int) -> bool:
    """Reserve space for a range, which then reads as zeroes; False when the host cannot."""
    return _fallocate(fd, 0, offset, length)


def is_faster_reserved(fd: int) -> bool:
    """Whether the file system writes faster into space that `reserve` has found before."""
    return _file_system(fd) in (_EXT4_MAGIC, _XFS_MAGIC)


def is_in_memory(fd: int) -> bool:
    """Whether no read of the file waits for a disk."""
    return _file_system(fd) == _TMPFS_MAGIC


def _file_system(fd: int) -> int:
    """Return the kind of file system that a file is in; 0 when the host does not tell."""
    import ctypes

    answer = ctypes.create_string_buffer(_STATFS_SIZE)
    if ctypes.CDLL(None).fstatfs(fd, answer) != 0:
        return 0
    # The first field, a word of the machine's (__fsword_t).
    return ctypes.c_ulong.from_buffer(answer).value


def reserve(fd: int, offset: int, length: int) -> bool:
    """Find space for what will be written, without a change that can be read; False when not."""
    return _fallocate(fd, _KEEP_SIZE, offset, length)


def sector_size(fd: int) -> int:
    """Return the logical sector of a block device, in bytes."""
    answer = bytearray(4)
    fcntl.ioctl(fd, _BLKSSZGET, answer)
    return int(struct.unpack("=i", answer)[0])


def extents(fd: int, offset: int, length: int) -> Iterator[tuple[int, bool]]:
    """Yield (length, has data) over a range, with SEEK_DATA and SEEK_HOLE.

    A file system without holes reports one run of data. What lies past the
    end of the file is a hole.
    """
    end = offset + length
    while offset < end:
        try:
            start = min(os.lseek(fd, offset, os.SEEK_DATA), end)
        except OSError as fault:
            if fault.errno == errno.ENXIO:
                yield end - offset, False
                return
            if fault.errno not in _CANNOT:
                raise
            yield end - offset, True
            return
        if start > offset:
            yield start - offset, False
        if start == end:
            return
        offset = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        yield offset - start, True


def lock_byte(fd: int, byte: int) -> bool:
    """Take a shared OFD lock on one byte; False when the file system has no locks."""
    try:
        fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    except OSError as fault:
        if fault.errno in (*_CANNOT, errno.ENOLCK):
            return False
        raise
    return True


def unlock_byte(fd: int, byte: int) -> None:
    """Give up the OFD lock on one byte."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))


def byte_is_locked(fd: int, byte: int) -> bool:
    """Whether any other open file description holds a lock on that byte."""
    try:
        answer = fcntl.fcntl(fd, _F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    except OSError as fault:
        if fault.errno in (*_CANNOT, errno.ENOLCK):
            return False
        raise
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
