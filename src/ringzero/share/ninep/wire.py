"""The messages of 9P2000.L, packed and taken apart (diod's protocol.md; Linux: include/net/9p).

No I/O. All numbers are little-endian; a string is its length in 16 bits and its bytes.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ringzero.share.message import NAME_MAX, PATH_MAX, Message, WireError, checked_length

VERSION, UNKNOWN = b"9P2000.L", b"unknown"
HEADER = struct.Struct("<IBH")  # length, type, tag
QID = struct.Struct("<BIQ")  # type, version, path
U8, U16, U32, U64 = (struct.Struct("<" + letter) for letter in "BHIQ")

# Requests; each answer has the next number.
STATFS, LOPEN, LCREATE, SYMLINK, MKNOD, RENAME, READLINK, GETATTR, SETATTR = (
    8, 12, 14, 16, 18, 20, 22, 24, 26
)  # fmt: skip
XATTRWALK, XATTRCREATE, READDIR, FSYNC, LOCK, GETLOCK, LINK, MKDIR, RENAMEAT, UNLINKAT = (
    30, 32, 40, 50, 52, 54, 70, 72, 74, 76
)  # fmt: skip
TVERSION, AUTH, ATTACH, FLUSH, WALK, READ, WRITE, CLUNK, REMOVE = (
    100, 102, 104, 108, 110, 116, 118, 120, 122
)  # fmt: skip
RLERROR = 7

NO_TAG, NO_FID, NO_UID = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
# QTDIR, QTSYMLINK, QTFILE.
QID_DIRECTORY, QID_LINK, QID_FILE = 0x80, 0x02, 0x00
MAX_WALK = 16

# fid, offset, count; what stands before the data of WRITE.
TRANSFER = struct.Struct("<IQI")
WALK_IN = struct.Struct("<IIH")  # fid, new fid, how many names follow
WALK_OUT = struct.Struct("<HBIQ")  # how many qids follow, and the first of them
GETATTR_IN = struct.Struct("<IQ")  # fid, what is asked for
# valid; type, version and path of the qid; mode, uid, gid, links, rdev, size, block size, blocks;
# seconds and nanoseconds of atime, mtime, ctime and birth time; generation, version of the data
GETATTR_OUT = struct.Struct("<QBIQIIIQQQQQqQqQqQqQQQ")
# valid, mode, uid, gid, size, seconds and nanoseconds of atime and mtime
SETATTR_IN = struct.Struct("<IIIIQQQQQ")
# type of file system, block size, blocks, free, available, files, free files, id, name length
STATFS_OUT = struct.Struct("<IIQQQQQQI")
DIRENT = struct.Struct("<BIQQBH")  # qid, offset of the next, DT_*, length of the name
LOCK_IN = struct.Struct("<BIQQI")  # type, flags, start, length, process; a string follows
GETLOCK_IN = struct.Struct("<BQQI")
# Linux: V9FS_MAGIC, which statfs(2) shows.
MAGIC = 0x01021997

# P9_STATS_BASIC: everything that GETATTR asks for as a rule, and that we know.
GETATTR_BASIC = 0x7FF
SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME, SET_CTIME = (1 << n for n in range(7))
SET_ATIME_GIVEN, SET_MTIME_GIVEN = 1 << 7, 1 << 8
LOCK_SUCCESS, LOCK_BLOCKED = 0, 1
LOCK_WAIT = 1
UNLINK_DIRECTORY = 0x200
# The bits of LOPEN and LCREATE are Linux's own of x86 (P9_DOTL_*).
# The smallest messages that a server works with: an answer with a link's longest text.
LEAST_MESSAGE = 8192
# The longest body but for the data of WRITE: a name and a link's text, or sixteen names.
MAX_BODY = 2 * PATH_MAX


class Fields(Message):
    """What stands behind a message's header."""

    __slots__ = ()

    def number(self, layout: struct.Struct = U32) -> int:
        """Return one number, of 32 bits unless another layout is given."""
        return self.take(layout)[0]

    def text(self, limit: int) -> bytes:
        data, at = self._data, self._at + U16.size
        self._at = at + int.from_bytes(data[at - U16.size : at], "little")
        if self._at > len(data):
            raise WireError("a request is cut off", size=len(data), needed=self._at)
        text = checked_length(data[at : self._at], limit)
        if b"\0" in text:
            raise WireError("a NUL in a string")
        return text


class Version(NamedTuple):
    """What TVERSION settles: the longest message in bytes, and the protocol."""

    size: int
    name: bytes


def version(fields: Fields, most: int) -> Version:
    """Return what is answered to TVERSION; raises WireError for messages that are too small."""
    size = fields.number()
    # Linux tells ours apart from 9P2000.u by the whole name.
    name = fields.text(NAME_MAX)
    if size < LEAST_MESSAGE:
        raise WireError("messages that are too small", size=size, least=LEAST_MESSAGE)
    return Version(min(size, most), VERSION if name == VERSION else UNKNOWN)


def string(text: bytes) -> bytes:
    """Return a string as messages have it."""
    return U16.pack(len(text)) + text
