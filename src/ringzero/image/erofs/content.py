"""The content of a tar's files, placed in an EROFS image as it comes.

Each file begins at a block's beginning, in the archive's order; a short end of one is kept for
its inode instead (`structures.tail_size`). What is zero is not written: it is a hole, or part of
a block that is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from ringzero.image.erofs import structures
from ringzero.image.erofs.structures import BLOCK
from ringzero.image.layers import tar
from ringzero.image.layers.tar import Member

# Written at once, in bytes and pieces (the kernel takes 1,024 of these, IOV_MAX).
_BATCH, _MOST_PIECES = 1 << 18, 1000
_ZEROS = memoryview(bytes(1 << 18))
# Where the kernel copies no ranges between files, so much at a time is copied here.
_CHUNK = 1 << 20


def place(
    archive: tar.Stream, file: int, begin: int, told: Callable[[], object] = lambda: None
) -> tuple[list[Member], int]:
    """Write the content of an archive's files to a file from `begin` on, a block, and beyond.

    Returns the members, whose `offset` is how far behind `begin` their content lies, and how many
    bytes there are now, whole blocks. What lies there must be zero before. `told` hears of each
    member. Raises OSError, GuestImageError for a damaged archive, and what `told` raises.
    """
    found: list[Member] = []
    target = _Target(file, begin)
    for member in tar.members(archive):
        told()
        if stat.S_ISREG(member.mode):
            # Attributes that are left out later take no more room than those that are there.
            xattrs = len(structures.xattrs(member.xattrs)) if member.xattrs else 0
            tail = structures.tail_size(member.size, xattrs, file=True)
            member.offset = target.at - begin
            for piece in archive.pieces(member.size - tail):
                target.write(piece)
            target.align()
            member.tail = archive.take(tail)
        found.append(member)
    target.flush()
    return found, target.at - begin


class _Target:
    """A file from the offset `at` on, written in batches."""

    def __init__(self, file: int, at: int) -> None:
        self.at = at
        self._file = file
        self._pieces: list[memoryview] = []
        self._size = 0

    def write(self, data: memoryview) -> None:
        """Write bytes, soon."""
        if not data[0] and not data[-1] and data == _ZEROS[: len(data)]:
            self.flush()
        else:
            self._pieces.append(data)
            self._size += len(data)
        self.at += len(data)
        if self._size >= _BATCH or len(self._pieces) >= _MOST_PIECES:
            self.flush()

    def align(self) -> None:
        """Go on at the next block's beginning."""
        if rest := -self.at % BLOCK:
            if self._pieces:
                self._pieces.append(_ZEROS[:rest])
                self._size += rest
            self.at += rest

    def flush(self) -> None:
        """Write what is waiting."""
        if not self._pieces:
            return
        written = os.pwritev(self._file, self._pieces, self.at - self._size)
        if written < self._size:
            # A disk that is full, as the next one tells.
            rest = memoryview(b"".join(self._pieces))[written:]
            while rest:
                rest = rest[os.pwrite(self._file, rest, self.at - len(rest)) :]
        self._pieces, self._size = [], 0


def copy(source: int, target: int, at: int, length: int) -> None:
    """Copy the first `length` bytes of a file to another at `at`, where there is nothing.

    By the kernel (copy_file_range(2)), which may share them instead of copying.
    """
    offset = 0
    while offset < length:
        try:
            count = os.copy_file_range(source, target, length - offset, offset, at + offset)
        except OSError:
            data = os.pread(source, min(length - offset, _CHUNK), offset)
            count = os.pwrite(target, data, at + offset) if data.strip(b"\0") else len(data)
        if not count:
            raise OSError(None, "the file is shorter than what was written to it")
        offset += count
