"""The host bytes under a disk format: a file, a block device, or memory.

A format never opens a path and never calls the operating system; it is handed
a `Storage`. Tests hand in one that loses power.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from ringzero.disk.vectors import (
    Buffer,
    Buffers,
    Views,
    as_views,
    cut,
    fill_zeroes,
    total,
    zero_views,
)
from ringzero.errors import (
    DiskError,
    DiskLockedError,
    DiskReadOnlyError,
    NotFoundError,
    RingzeroError,
)
from ringzero.host import blockfile
from ringzero.units import KIB, MIB

# Appended runs from this size on are written into space that is reserved first: a fifth of the
# processor's time on ext4. And not before so many bytes of them, which pays for the call's
# module.
_RESERVED_RUN = 256 * KIB
_RESERVED_FROM = 16 * MIB

# QEMU's byte ranges (block/file-posix.c, "RAW_LOCK_PERM_BASE"): a lock on
# 100 + n says "I use permission n", on 200 + n "nobody else may use it".
_LOCK_USED = 100
_LOCK_UNSHARED = 200
_CONSISTENT_READ, _WRITE, _RESIZE = 0, 1, 3


class Storage(ABC):
    """A growable row of bytes on the host. All methods may be called from any thread."""

    name: str
    read_only: bool
    # Whether it has its size for ever and old bytes in it, as a device.
    is_device: bool = False

    @property
    @abstractmethod
    def size(self) -> int:
        """The present length in bytes."""

    @abstractmethod
    def read_into(self, offset: int, views: Views) -> None:
        """Fill `views` from `offset`; bytes past the end read as zeroes."""

    def read_cached(self, offset: int, views: Views) -> bool:
        """Fill `views` if the bytes are in the host's memory; False when that is not known."""
        return False

    def announce(self, offset: int, length: int) -> None:
        """Tell the host that a range will be read soon."""
        return

    @abstractmethod
    def write(self, offset: int, buffers: Buffers) -> None:
        """Write `buffers` at `offset`, growing the storage as needed."""

    @abstractmethod
    def flush(self) -> None:
        """Return when everything written so far survives a loss of power."""

    @abstractmethod
    def truncate(self, size: int) -> None:
        """Make the storage `size` bytes long; new bytes are zero."""

    def reach(self, size: int) -> None:
        """Make the storage at least `size` bytes long; DiskError on a device that is too small."""
        if size > self.size:
            self.truncate(size)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        data = bytearray(length)
        self.read_into(offset, [memoryview(data)])
        return bytes(data)

    def write_zeroes(self, offset: int, length: int, *, keep_space: bool = False) -> None:
        """Make a range read as zeroes, as a hole unless `keep_space`."""
        # 64 MiB at a time: the list of views stays short.
        for start in range(offset, offset + length, 64 << 20):
            self.write(start, zero_views(min(64 << 20, offset + length - start)))

    @abstractmethod
    def discard(self, offset: int, length: int) -> None:
        """Give a range back to the host when it can; a device's bytes are then undefined."""

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Yield (length, has data) over a range; no data means it reads as zeroes."""
        if length:
            yield length, True

    def allocated(self) -> int:
        """Return the bytes that the storage takes on the host."""
        return self.size

    @abstractmethod
    def close(self) -> None:
        """Let go of the host resources, without a flush."""


class Holes:
    """Tells data from holes in a storage, for ranges that are asked for in order.

    To find the end of a stretch of data takes some file systems as long as it is, so it is
    asked for once.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._dense = range(0)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Yield (length, has data) over a range, as `Storage.extents`."""
        end = offset + length
        if offset in self._dense and end <= self._dense.stop:
            yield length, True
            return
        for run, has_data in self._storage.extents(offset, max(end, self._storage.size) - offset):
            if has_data:
                self._dense = range(offset, offset + run)
            piece = min(run, end - offset)
            yield piece, has_data
            offset += piece
            if offset == end:
                return


class FileStorage(Storage):
    """A regular file or block device of the host.

    `sync=False` makes flush a no-op (for throw-away and half-made images).
    `lock` takes the same OFD locks as QEMU, so that two programs never write,
    or one write while another reads, the same image; raises DiskLockedError.
    """

    # The most buffers of one read of what is cached; -1 where the file system cannot tell of it.
    _cached_views = blockfile.IOV_MAX
    # Whether all of it is in the host's memory, where the file system cannot tell.
    _in_memory = False
    # Bytes that have been appended in long runs; -1 where nothing is reserved for them.
    _appended = 0

    def __init__(
        self,
        path: Path | str,
        *,
        read_only: bool = False,
        sync: bool = True,
        lock: bool = True,
        create: bool = False,
    ) -> None:
        self.path = Path(path)
        self.name = str(path)
        self.read_only = read_only
        self.sync = sync
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
        # A FIFO or a tape must not hang the open; regular files ignore it.
        flags |= os.O_NONBLOCK | (os.O_CREAT | os.O_EXCL if create else 0)
        try:
            self.fd = os.open(self.path, flags, 0o666)
        except OSError as fault:
            raise _open_error(fault, self.path, read_only) from fault
        try:
            mode = os.fstat(self.fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise DiskError(
                    f"{path} is neither a file nor a block device",
                    hint="name a disk image",
                    path=path,
                )
            self.is_device = stat.S_ISBLK(mode)
            self._size = os.lseek(self.fd, 0, os.SEEK_END)
            self._size_lock = threading.Lock()
            if lock:
                self.lock()
        except BaseException:
            os.close(self.fd)
            self.fd = -1
            raise

    def lock(self) -> None:
        """Take the locks that opening takes; raises DiskLockedError, and then has some of them."""
        mine, denied, taken = self._locks()
        if not all(blockfile.lock_byte(self.fd, byte) for byte in taken):
            return
        clash = any(blockfile.byte_is_locked(self.fd, _LOCK_UNSHARED + bit) for bit in mine)
        if clash or any(blockfile.byte_is_locked(self.fd, _LOCK_USED + bit) for bit in denied):
            raise DiskLockedError(
                f"{self.path} is in use by another process",
                hint="read it as it is with -U (--force-share), or stop who has it open"
                if self.read_only
                else "stop the machine or tool that has it open, or make an overlay on a copy",
                path=self.path,
            )

    def unlock(self) -> None:
        """Give up the locks, so that the same file may be opened another way before it closes."""
        for byte in self._locks()[2]:
            blockfile.unlock_byte(self.fd, byte)

    def _locks(self) -> tuple[list[int], list[int], list[int]]:
        """Return the permissions that are used, those that are denied, and the bytes for both."""
        mine = [_CONSISTENT_READ] + ([] if self.read_only else [_WRITE, _RESIZE])
        denied = [_WRITE, _RESIZE]
        return (
            mine,
            denied,
            [_LOCK_USED + bit for bit in mine] + [_LOCK_UNSHARED + bit for bit in denied],
        )

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, offset: int, views: Views) -> None:
        try:
            if len(views) <= blockfile.IOV_MAX:
                wanted = total(views)
                got = os.preadv(self.fd, views, offset)
                if got == wanted:
                    return
                views, offset = cut(views, got, wanted - got), offset + got
            while views:
                got = os.preadv(self.fd, views[: blockfile.IOV_MAX], offset)
                if got == 0:
                    fill_zeroes(views)
                    return
                views, offset = cut(views, got, total(views) - got), offset + got
        except OSError as fault:
            raise _io_error(fault, "read", self.name, offset) from fault

    def read_cached(self, offset: int, views: Views) -> bool:
        if len(views) > self._cached_views:
            if self._in_memory:
                self.read_into(offset, views)
            return self._in_memory
        try:
            return os.preadv(self.fd, views, offset, os.RWF_NOWAIT) == total(views)
        except OSError as fault:
            # Not cached, or the file system cannot tell. A real fault comes again.
            if fault.errno == errno.EOPNOTSUPP:
                self._cached_views = -1
                self._in_memory = blockfile.is_in_memory(self.fd)
                return self.read_cached(offset, views)
            return False

    def announce(self, offset: int, length: int) -> None:
        with contextlib.suppress(OSError):
            os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_WILLNEED)

    def write(self, offset: int, buffers: Buffers) -> None:
        views = buffers if type(buffers) is list else as_views(buffers)
        end = offset + total(views)
        if end - offset >= _RESERVED_RUN and end > self._size and self._appended >= 0:
            self._reserve(offset, end - offset)
        try:
            at = offset
            while at < end:
                some = views if len(views) <= blockfile.IOV_MAX else views[: blockfile.IOV_MAX]
                at += os.pwritev(self.fd, some, at)
                if at < end:
                    views = as_views(buffers)
                    views = cut(views, at - offset, end - at)
        except OSError as fault:
            raise _io_error(fault, "write", self.name, offset) from fault
        if end > self._size:
            with self._size_lock:
                self._size = max(self._size, end)

    def _reserve(self, offset: int, length: int) -> None:
        """Find space for a run before it is appended, where that makes the writing faster."""
        before, self._appended = self._appended, self._appended + length
        if self._appended < _RESERVED_FROM:
            return
        # No space is no fault yet: the write tells.
        with contextlib.suppress(OSError):
            if (before >= _RESERVED_FROM or blockfile.is_faster_reserved(self.fd)) and (
                blockfile.reserve(self.fd, offset, length)
            ):
                return
        self._appended = -1

    def flush(self) -> None:
        if self.read_only or not self.sync:
            return
        try:
            os.fdatasync(self.fd)
        except OSError as fault:
            raise _io_error(fault, "flush", self.name, 0) from fault

    def truncate(self, size: int) -> None:
        if self.is_device:
            raise DiskError(f"{self.path} is a device and cannot be resized", path=self.path)
        try:
            os.ftruncate(self.fd, size)
        except OSError as fault:
            raise _io_error(fault, "resize", self.name, size) from fault
        with self._size_lock:
            self._size = size

    def write_zeroes(self, offset: int, length: int, *, keep_space: bool = False) -> None:
        if not length:
            return
        end = offset + length
        try:
            if end > self._size and not self.is_device:
                with self._size_lock:
                    if end > self._size:
                        os.ftruncate(self.fd, end)
                        self._size = end
            change = blockfile.zero_range if keep_space or self.is_device else blockfile.punch_hole
            if change(self.fd, offset, length, device=self.is_device):
                return
        except OSError as fault:
            raise _io_error(fault, "zero", self.name, offset) from fault
        super().write_zeroes(offset, length)

    def discard(self, offset: int, length: int) -> None:
        with contextlib.suppress(OSError):
            blockfile.punch_hole(self.fd, offset, length, device=self.is_device)

    def preallocate(self, offset: int, length: int) -> None:
        """Reserve host space for a range; DiskError when there is too little."""
        try:
            if not blockfile.preallocate(self.fd, offset, length):
                super().write_zeroes(offset, length)
        except OSError as fault:
            raise _io_error(fault, "reserve", self.name, offset) from fault
        with self._size_lock:
            self._size = max(self._size, offset + length)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        if self.is_device:
            return super().extents(offset, length)
        return blockfile.extents(self.fd, offset, length)

    def allocated(self) -> int:
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class MemoryStorage(FileStorage):
    """Bytes without a file: an anonymous memory file, gone when it is closed."""

    def __init__(self, name: str = "memory") -> None:
        self.path = Path(name)
        self.name = name
        self.read_only = False
        self.sync = False
        self.is_device = False
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
        self._size = 0
        self._size_lock = threading.Lock()


class Window(Storage):
    """A part of another storage, seen as a whole (raw's offset and size options).

    It neither grows nor shrinks.
    """

    def __init__(self, whole: Storage, start: int, size: int) -> None:
        self.whole = whole
        self.start = start
        self.name = whole.name
        self.read_only = whole.read_only
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def _check(self, offset: int, length: int) -> None:
        if offset + length > self._size:
            raise DiskError(f"{self.name}: the window of {self._size} bytes cannot grow")

    def read_into(self, offset: int, views: Views) -> None:
        length = total(views)
        there = max(0, min(length, self._size - offset))
        if there:
            self.whole.read_into(self.start + offset, cut(views, 0, there))
        if there < length:
            fill_zeroes(cut(views, there, length - there))

    def read_cached(self, offset: int, views: Views) -> bool:
        if offset + total(views) > self._size:
            return False
        return self.whole.read_cached(self.start + offset, views)

    def announce(self, offset: int, length: int) -> None:
        self.whole.announce(self.start + offset, length)

    def write(self, offset: int, buffers: Buffers) -> None:
        views = as_views(buffers)
        self._check(offset, total(views))
        self.whole.write(self.start + offset, views)

    def flush(self) -> None:
        self.whole.flush()

    def truncate(self, size: int) -> None:
        if size != self._size:
            raise DiskError(f"{self.name}: a window into a file cannot be resized")

    def write_zeroes(self, offset: int, length: int, *, keep_space: bool = False) -> None:
        self._check(offset, length)
        self.whole.write_zeroes(self.start + offset, length, keep_space=keep_space)

    def discard(self, offset: int, length: int) -> None:
        self._check(offset, length)
        self.whole.discard(self.start + offset, length)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        return self.whole.extents(self.start + offset, length)

    def allocated(self) -> int:
        return self.whole.allocated()

    def close(self) -> None:
        self.whole.close()


def write_exactly(storage: Storage, offset: int, data: Buffer, *, room: int) -> None:
    """Write `data` padded with zeroes to `room` bytes."""
    storage.write(offset, [data, bytes(room - len(data))])


def _open_error(fault: OSError, path: Path, read_only: bool) -> RingzeroError:
    if fault.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(f"no file {path}", hint="check the path", path=path)
    if fault.errno == errno.EEXIST:
        return DiskError(
            f"{path} exists", hint="remove it first, or choose another name", path=path
        )
    if fault.errno in (errno.EACCES, errno.EROFS, errno.EPERM) and not read_only:
        return DiskReadOnlyError(
            f"{path} may not be written: {fault.strerror}",
            hint="open it read-only, or put an overlay on it",
            path=path,
        )
    return DiskError(f"cannot open {path}: {fault.strerror}", path=path)


def _io_error(fault: OSError, verb: str, name: str, offset: int) -> DiskError:
    hint = "make room on the host's disk" if fault.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return DiskError(
        f"cannot {verb} {name} at byte {offset}: {fault.strerror}",
        hint=hint,
        path=name,
        offset=offset,
        errno=fault.errno,
    )
