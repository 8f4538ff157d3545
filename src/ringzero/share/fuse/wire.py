"""The messages of FUSE 7.31 to 7.38 (Linux: include/uapi/linux/fuse.h), packed and taken apart.

No I/O. All numbers are little-endian, as virtio-fs has them (virtio 1.2 section 5.11.6).
"""

from __future__ import annotations

import struct

from ringzero.share.message import PATH_MAX, XATTR_SIZE_MAX, Message, WireError, checked_length

# What we speak; a guest that speaks an older minor version gets that one.
MAJOR, MINOR = 7, 38
# Below this the messages have other sizes. Linux 5.4, the first with virtio-fs, has 7.31.
LEAST_MINOR = 31

IN_HEADER = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extensions
OUT_HEADER = struct.Struct("<IiQ")  # length, error, unique
# ino, size, blocks; seconds and then nanoseconds of atime, mtime, ctime; mode, links, uid, gid,
# rdev, block size, flags
ATTRIBUTES = struct.Struct("<6Q10I")
# node, generation, seconds that the name and the attributes are valid, and their nanoseconds
ENTRY = struct.Struct("<4Q2I")
ATTRIBUTES_VALID = struct.Struct("<QII")
INIT_IN = struct.Struct("<IIII")
INIT_IN_FLAGS2 = struct.Struct("<I")
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
GETATTR = struct.Struct("<IIQ")
SETATTR = struct.Struct("<IIQQQQQQIIIIIIII")
MKNOD = struct.Struct("<IIII")
MKDIR = struct.Struct("<II")
RENAME2 = struct.Struct("<QII")
OPEN = struct.Struct("<II")
OPEN_OUT = struct.Struct("<QII")
CREATE = struct.Struct("<IIII")
# fh, offset, size, flags of the read or write, lock owner, flags of the file
TRANSFER = struct.Struct("<QQIIQII")
WRITE_OUT = struct.Struct("<II")
STATFS_OUT = struct.Struct("<5Q4I24x")
RELEASE = struct.Struct("<QIIQ")
FLUSH = struct.Struct("<QIIQ")
FSYNC = struct.Struct("<QII")
SETXATTR = struct.Struct("<II")
SETXATTR_EXTENDED = struct.Struct("<IIII")
GETXATTR = struct.Struct("<II")
# fh, owner, start, end, type, pid, flags
LOCK = struct.Struct("<QQQQIIII")
LOCK_OUT = struct.Struct("<QQII")
FALLOCATE = struct.Struct("<QQQII")
LSEEK = struct.Struct("<QQII")
COPY_RANGE = struct.Struct("<QQQQQQQ")
FORGET_ONE = struct.Struct("<QQ")
NUMBER = struct.Struct("<Q")
DIRENT = struct.Struct("<QQII")

(
    LOOKUP_OP, FORGET_OP, GETATTR_OP, SETATTR_OP, READLINK_OP, SYMLINK_OP
) = range(1, 7)  # fmt: skip
(
    MKNOD_OP, MKDIR_OP, UNLINK_OP, RMDIR_OP, RENAME_OP, LINK_OP, OPEN_OP, READ_OP, WRITE_OP,
    STATFS_OP, RELEASE_OP
) = range(8, 19)  # fmt: skip
(
    FSYNC_OP, SETXATTR_OP, GETXATTR_OP, LISTXATTR_OP, REMOVEXATTR_OP, FLUSH_OP, INIT_OP,
    OPENDIR_OP, READDIR_OP, RELEASEDIR_OP, FSYNCDIR_OP, GETLK_OP, SETLK_OP, SETLKW_OP, ACCESS_OP,
    CREATE_OP, INTERRUPT_OP, BMAP_OP, DESTROY_OP, IOCTL_OP, POLL_OP, NOTIFY_REPLY_OP,
    BATCH_FORGET_OP, FALLOCATE_OP, READDIRPLUS_OP, RENAME2_OP, LSEEK_OP, COPY_RANGE_OP
) = range(20, 48)  # fmt: skip
SYNCFS_OP, TMPFILE_OP = 50, 51

# What INIT negotiates (FUSE_ASYNC_READ and so on).
ASYNC_READ, POSIX_LOCKS, ATOMIC_O_TRUNC, BIG_WRITES = 1 << 0, 1 << 1, 1 << 3, 1 << 5
FLOCK_LOCKS, AUTO_INVALIDATE, DO_READDIRPLUS, READDIRPLUS_AUTO = 1 << 10, 1 << 12, 1 << 13, 1 << 14
ASYNC_DIO, PARALLEL_DIROPS, MAX_PAGES = 1 << 15, 1 << 18, 1 << 22
CACHE_SYMLINKS, SUBMOUNTS, KILLPRIV_V2, SETXATTR_EXT = 1 << 23, 1 << 27, 1 << 28, 1 << 29
INIT_EXT = 1 << 30

# FATTR_*: which fields SETATTR sets.
SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME, SET_FH = (1 << n for n in range(7))
SET_ATIME_NOW, SET_MTIME_NOW, SET_KILL = 1 << 7, 1 << 8, 1 << 11
ATTR_SUBMOUNT = 1 << 0
GETATTR_FH = 1
OPEN_KILL = 1
OPENED_DIRECT, OPENED_KEEP_CACHE = 1 << 0, 1 << 1
WRITE_KILL = 1 << 2
RELEASE_FLOCK_UNLOCK = 1 << 1
LOCK_FLOCK = 1
FSYNC_DATA = 1
SETXATTR_KILL_SGID = 1

# linux/limits.h.
XATTR_NAME_MAX = 255
# The largest body of a request but for the data of WRITE: a symlink with its target, or SETXATTR.
MAX_BODY = 2 * PATH_MAX + XATTR_SIZE_MAX
_64 = (1 << 64) - 1


class Body(Message):
    """What stands behind a request's header; a text ends with a NUL."""

    __slots__ = ()

    def text(self, limit: int) -> bytes:
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise WireError("a name without its end")
        text = self._data[self._at : end]
        self._at = end + 1
        return checked_length(text, limit)


def dirent(ino: int, offset: int, kind: int, name: bytes) -> bytes:
    """Return an entry of READDIR; `kind` is DT_*, `offset` where the next one begins."""
    padded = (len(name) + 7) & ~7
    return DIRENT.pack(ino & _64, offset, len(name), kind) + name.ljust(padded, b"\0")
