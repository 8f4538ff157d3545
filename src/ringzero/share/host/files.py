"""Open files of a host directory, and the record locks on them."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence

from ringzero.host import beneath
from ringzero.share.contract import File, Locks

# What one preadv takes (limits.h: IOV_MAX).
_MOST_VIEWS = 1024
# struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK = struct.Struct("@hhqqi4x")
# The end of a lock that goes on for ever (fs.h: OFFSET_MAX).
_FOR_EVER = (1 << 63) - 1


class HostFile(File):
    """A descriptor of a regular file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read_into(self, offset: int, views: Sequence[memoryview]) -> int:
        done = 0
        for at in range(0, len(views), _MOST_VIEWS):
            some = views[at : at + _MOST_VIEWS]
            count = os.preadv(self.fd, some, _checked(offset + done))
            done += count
            if count < sum(map(len, some)):
                break
        return done

    def write_from(self, offset: int, views: Sequence[memoryview]) -> int:
        done = 0
        for at in range(0, len(views), _MOST_VIEWS):
            some = views[at : at + _MOST_VIEWS]
            try:
                count = os.pwritev(self.fd, some, _checked(offset + done))
            except OSError:
                if done:
                    break
                raise
            done += count
            if count < sum(map(len, some)):
                break
        return done

    def sync(self, *, data_only: bool) -> None:
        if data_only:
            os.fdatasync(self.fd)
        else:
            os.fsync(self.fd)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        beneath.fallocate(self.fd, mode, _checked(offset), _checked(length))

    def seek(self, offset: int, whence: int) -> int:
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "neither data nor holes")
        return os.lseek(self.fd, _checked(offset), whence)

    def copy_to(self, offset: int, target: File, target_offset: int, length: int) -> int:
        if not isinstance(target, HostFile):
            raise OSError(errno.EXDEV, "another kind of share")
        return os.copy_file_range(
            self.fd, target.fd, length, _checked(offset), _checked(target_offset)
        )

    def flock(self, operation: int) -> None:
        fcntl.flock(self.fd, operation | fcntl.LOCK_NB)

    def close(self) -> None:
        os.close(self.fd)


class HostLocks(Locks):
    """Open file description locks (fcntl(2)) of a description of their own.

    They are in the way of all others', of the host's programs' too.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def get(self, kind: int, start: int, end: int) -> tuple[int, int, int]:
        answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _packed(kind, start, end))
        found, _, begin, length, _ = _FLOCK.unpack(answer)
        return found, begin, begin + length - 1 if length else _FOR_EVER

    def set(self, kind: int, start: int, end: int) -> None:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _packed(kind, start, end))
        except PermissionError as fault:
            raise BlockingIOError(errno.EAGAIN, "locked") from fault

    def close(self) -> None:
        os.close(self._fd)


def _packed(kind: int, start: int, end: int) -> bytes:
    if kind not in (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK) or start > end:
        raise OSError(errno.EINVAL, "no lock")
    length = 0 if end >= _FOR_EVER else end - start + 1
    return _FLOCK.pack(kind, os.SEEK_SET, _checked(start), length, 0)


def _checked(number: int) -> int:
    """Return an offset that fits into off_t; raises EINVAL."""
    if number > _FOR_EVER:
        raise OSError(errno.EINVAL, "beyond the largest offset")
    return number
