"""Files below a directory and nowhere else: openat2(2), and calls that Python's os has not.

`ctypes` is loaded with this module, so it is not for the way of a start.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct

# x86-64, arm64 and riscv64 share this number (asm-generic/unistd.h).
_OPENAT2 = 437
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
_AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
# statx(2), linux/stat.h: how large the structure is, and where the time of birth stands.
_AT_EMPTY_PATH, _STATX_BTIME = 0x1000, 0x800
_STATX_SIZE, _STATX_BTIME_AT, _STATX_TIME = 256, 80, struct.Struct("@qI")
_HOW = struct.Struct("@QQQ")


def _raise(path: bytes) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), path)


def _openat2(root: int, path: bytes, flags: int) -> int:
    how = _HOW.pack(flags | os.O_CLOEXEC, 0, _BENEATH | _NO_MAGICLINKS | _NO_SYMLINKS)
    found = int(
        _libc.syscall(
            ctypes.c_long(_OPENAT2),
            ctypes.c_int(root),
            ctypes.c_char_p(path),
            how,
            ctypes.c_size_t(len(how)),
        )
    )
    if found < 0:
        _raise(path)
    return found


@functools.cache
def has_openat2() -> bool:
    """Whether the kernel has openat2 (Linux 5.6), and lets us use it."""
    try:
        os.close(_openat2(_AT_FDCWD, b".", os.O_PATH))
    except OSError as fault:
        # EXDEV and others are answers of openat2's own; seccomp says ENOSYS or EPERM.
        return fault.errno not in (errno.ENOSYS, errno.EPERM)
    return True


def open_beneath(root: int, path: bytes, flags: int) -> int:
    """Return a descriptor of `path` below the directory `root`; no component is followed out.

    Symbolic links are not followed either, the last one but with O_PATH | O_NOFOLLOW, which
    opens the link itself. Raises OSError.
    """
    if has_openat2():
        return _openat2(root, path, flags | os.O_NOFOLLOW)
    return open_by_steps(root, path, flags)


def open_by_steps(root: int, path: bytes, flags: int) -> int:
    """Do as `open_beneath` where the kernel has no openat2: one component after the other."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    here = os.dup(root)
    try:
        for name in names[:-1]:
            step = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = step
        last = names[-1] if names else b"."
        return os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)


def rename(
    directory: int, name: bytes, new_directory: int, new_name: bytes, flags: int = 0
) -> None:
    """As renameat2(2); raises OSError."""
    if not flags:
        os.rename(name, new_name, src_dir_fd=directory, dst_dir_fd=new_directory)
        return
    if _libc.renameat2(
        ctypes.c_int(directory),
        ctypes.c_char_p(name),
        ctypes.c_int(new_directory),
        ctypes.c_char_p(new_name),
        ctypes.c_uint(flags),
    ):
        _raise(name)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """As fallocate(2), with its modes; raises OSError."""
    if _libc.fallocate(
        ctypes.c_int(descriptor),
        ctypes.c_int(mode),
        ctypes.c_int64(offset),
        ctypes.c_int64(length),
    ):
        _raise(b"")


def birth_time(descriptor: int) -> int:
    """Return when a file was made, in nanoseconds; 0 where the file system does not know."""
    found = ctypes.create_string_buffer(_STATX_SIZE)
    done = _libc.statx(
        ctypes.c_int(descriptor),
        ctypes.c_char_p(b""),
        ctypes.c_int(_AT_EMPTY_PATH),
        ctypes.c_uint(_STATX_BTIME),
        found,
    )
    if done or not int.from_bytes(found.raw[:4], "little") & _STATX_BTIME:
        return 0
    seconds, nanoseconds = _STATX_TIME.unpack_from(found, _STATX_BTIME_AT)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def syncfs(descriptor: int) -> None:
    """Bring a whole file system to its medium (syncfs(2)); raises OSError."""
    if _libc.syncfs(ctypes.c_int(descriptor)):
        _raise(b"")
