"""Memory from the operating system: sparse, with a known host address, copied on write."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import resource
import struct
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Self

from ringzero.errors import HostError
from ringzero.host.files import too_large
from ringzero.records import record
from ringzero.units import format_size

PAGE = mmap.PAGESIZE
# Up to this much that a machine changed since its base is copied into each clone, at about a
# microsecond per page; of more, a new base is made, once, which costs as much as the whole.
COPY_LIMIT = 4 << 20
# So is one when clones have been given copies of so large a part of the base: a page that is copied
# into a clone takes a fault there, and memory of its own.
_COPIED_PART = 1 / 4

# What a processor maps as one where address and content are aligned to it.
_LARGE_PAGE = 2 << 20
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MADV_DONTNEED = 4
_MADV_REMOVE = 9
_MADV_DONTFORK = 10
_MADV_POPULATE_READ = 22
# ioctl PAGEMAP_SCAN (Linux 6.7; Documentation/admin-guide/mm/pagemap.rst).
_PAGEMAP_SCAN = 0xC0606610
_SCAN = struct.Struct("<12Q")
_IS_FILE, _IS_PRESENT, _IS_SWAPPED = 1 << 2, 1 << 3, 1 << 4
_SCAN_REGIONS = 512
_PAGEMAP = "/proc/self/pagemap"
# Highest byte of an entry of /proc/PID/pagemap: present, swapped, page of a file.
_ANONYMOUS = bytes(int(bool(byte & 0xC0) and not byte & 0x20) for byte in range(256))
_PRESENT = bytes(int(bool(byte & 0xC0)) for byte in range(256))


# One that was handed to this process, with the process's number.
_lent: tuple[int, int] | None = None


def lend_pagemap(descriptor: int) -> None:
    """Have the calling process use what is its own /proc/self/pagemap, which it cannot open."""
    global _lent
    if _lent is not None:
        os.close(_lent[1])
    _lent = os.getpid(), descriptor


def _open_pagemap() -> int:
    """Return a descriptor of the process's pagemap, the caller's to close. Raises OSError."""
    if _lent is not None and _lent[0] == os.getpid():
        return os.dup(_lent[1])
    return os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
        ctypes.c_long,
    ]  # fmt: skip
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


_LIBC = _libc()
_FAILED = ctypes.c_void_p(-1).value


class Held(ABC):
    """Something of the host's with several holders, the last of which gives it back."""

    def __init__(self) -> None:
        self._holders = 1
        self._lock = threading.Lock()

    def hold(self) -> Self:
        """Count one more holder."""
        with self._lock:
            self._holders += 1
        return self

    def release(self) -> None:
        """Count one holder less."""
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                self._give_back()

    @abstractmethod
    def _give_back(self) -> None:
        """Nobody holds it any more."""


class MemoryBase(Held):
    """A descriptor whose bytes many mappings look at; closed when the last holder lets go.

    `owned` says that nobody else knows the descriptor, so that a single holder may write to it.
    """

    def __init__(self, fd: int, size: int, *, owned: bool) -> None:
        super().__init__()
        self.fd = fd
        self.size = size
        self.owned = owned
        # Whoever forgets to let go must not use up the process's descriptors.
        self._close = weakref.finalize(self, os.close, fd)

    def _give_back(self) -> None:
        self._close()
        self.fd = -1

    @property
    def sole(self) -> bool:
        """Whether there is one holder only, which may write."""
        return self.owned and self._holders == 1

    def extents(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of what is no hole."""
        while start < end:
            try:
                start = os.lseek(self.fd, start, os.SEEK_DATA)
            except OSError as fault:
                if fault.errno == errno.ENXIO:  # nothing but holes from here on
                    return
                raise
            if start >= end:
                return
            stop = min(os.lseek(self.fd, start, os.SEEK_HOLE), end)
            yield start, stop
            start = stop


@record
class MemoryImage:
    """The content of a memory at one instant: a base, and copies of what differs from it.

    `changed` holds (offset, bytes), in pages. Whoever has an image closes it. Of one whose pages
    somebody else supplies as they are touched, `supplied` hears of the first mapping: its address
    and size.
    """

    base: MemoryBase
    changed: tuple[tuple[int, bytes], ...] = ()
    supplied: Callable[[int, int], None] | None = None

    @property
    def size(self) -> int:
        return self.base.size

    def share(self) -> None:
        """Be good in processes forked from now on, which hold the base without being counted."""
        self.base.owned = False

    def hold(self) -> MemoryImage:
        """Return another image of the same content, to be closed on its own."""
        return MemoryImage(self.base.hold(), self.changed)

    def close(self) -> None:
        """Let go of the base."""
        self.base.release()


class HostMemory:
    """`size` bytes of memory, mapped once, at one address for life.

    It begins as zeroes, shared by all who map `fd`; or as a private copy of an
    `image`, of which it shares all pages that it does not write to. `freeze`
    makes it private in place. Pages take no host memory until they are
    touched. `view` is the whole mapping.

    Behind it lie `files` bytes more, for files of the host's (`map_file`): they have addresses
    in `view`, and are no part of the content.

    With `large_pages` it begins as memory of this process alone, to which the host
    gives pages of 2 MiB; then the first `freeze` copies what was touched. Raises HostError.
    """

    def __init__(
        self,
        name: str,
        size: int,
        image: MemoryImage | None = None,
        *,
        large_pages: bool = False,
        files: int = 0,
    ) -> None:
        self.size = size
        self._anonymous = large_pages and image is None
        fd = -1
        try:
            if image is None:
                fd = os.memfd_create(name, os.MFD_CLOEXEC)
                os.ftruncate(fd, size)
            # Reserves the addresses; mmap objects of a file would keep a descriptor each.
            self._map = mmap.mmap(
                -1,
                size + files + _LARGE_PAGE,
                mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE,
            )
        except (OSError, ValueError, OverflowError) as cause:
            if fd >= 0:
                os.close(fd)
            raise _no_memory(name, size, cause) from cause
        self.base = image.base.hold() if image else MemoryBase(fd, size, owned=True)
        self.private = image is not None or self._anonymous
        # What clones were given copies of, in bytes, since there is this base; and where pages
        # begin that are known to have differed from it.
        self._copied, self._differing = 0, set[int]()
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        lead = -start % _LARGE_PAGE
        self.address = start + lead
        self.view = memoryview(self._map)[lead : lead + size + files]
        self._closed, self._closing = False, threading.Lock()
        # Whether missing pages are somebody else's to supply.
        self._supplied = False
        # Files that are mapped behind it and not shared: bytes by offset.
        self._files: dict[int, int] = {}
        try:
            if self._anonymous:
                # Advice: a host without such pages is slower, and that is all.
                with contextlib.suppress(OSError):
                    self._map.madvise(mmap.MADV_HUGEPAGE)
            else:
                self._place()
            if image is not None and image.supplied is not None:
                image.supplied(self.address, size)
                self._supplied = True
            for offset, data in image.changed if image else ():
                self.view[offset : offset + len(data)] = data
        except BaseException:
            self.close()
            raise

    @property
    def fd(self) -> int:
        """What the memory is mapped from; -1 once it was given back."""
        return -1 if self._closed else self.base.fd

    def _place(self) -> None:
        """Map the base over whatever is mapped now."""
        how = mmap.MAP_PRIVATE | _MAP_NORESERVE if self.private else mmap.MAP_SHARED
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        flags = how | _MAP_FIXED
        got = _LIBC.mmap(self.address, self.size, protection, flags, self.base.fd, 0)
        if got != self.address:
            raise _no_memory("a copy of a machine", self.size)

    def map_file(self, offset: int, fd: int, length: int, *, shared: bool) -> None:
        """Map `length` bytes of a file at `offset`, behind the content; before anybody reads there.

        What is written goes to the file where it is `shared`, else it stays here. The file must
        not be made shorter meanwhile. Raises HostError.
        """
        flags = (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE) | _MAP_FIXED
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        place = self.address + offset
        if _LIBC.mmap(place, length, protection, flags, fd, 0) != place:
            reason = os.strerror(ctypes.get_errno())
            raise HostError(f"the host does not map a file: {reason}", size=length)
        if not shared:
            self._files[offset] = length

    def has_written_file(self, offset: int) -> bool:
        """Whether what is mapped at `offset`, and is not shared, may differ from its file."""
        length = self._files.get(offset, 0)
        return bool(length) and bool(self._anonymous_pages(self.address + offset, length))

    def freeze(self, limit: int = COPY_LIMIT, *, clones: int = 1) -> MemoryImage:
        """Return the content as it is now; it goes on as a private copy of that.

        Up to `limit` bytes that have changed are copied into each of the `clones`, or however many
        will map the image; of more, a new base is made. Nobody may read or write meanwhile.
        Address and views stay good. Raises HostError.
        """
        try:
            return self._freeze(limit, clones)
        except OSError as cause:
            raise _no_memory("a copy of a machine", self.size) from cause

    def _freeze(self, limit: int, clones: int) -> MemoryImage:
        if not self.private:
            self.private = True
            self._place()
            return MemoryImage(self.base.hold())
        if self._supplied:
            # What is copied is looked for here only.
            self._take_all()
            self._new_base(self.changed())
            return MemoryImage(self.base.hold())
        changed = self.changed()
        if self._anonymous:
            for start, end in changed:
                _write_all(self.base.fd, self.view[start:end], start)
            self._anonymous = False
            self._place()
            return MemoryImage(self.base.hold())
        if not changed:
            return MemoryImage(self.base.hold())
        if self.base.sole:
            # No clone is left: what changed becomes part of the base.
            for start, end in changed:
                _write_all(self.base.fd, self.view[start:end], start)
                _LIBC.madvise(self.address + start, end - start, _MADV_DONTNEED)
            return MemoryImage(self.base.hold())
        size = sum(end - start for start, end in changed)
        if size <= limit:
            changed = self._forget_same(changed, self._differing)
            size = sum(end - start for start, end in changed)
        self._copied += size * clones
        if size <= limit and self._copied <= self._base_size() * _COPIED_PART:
            copies = tuple((start, bytes(self.view[start:end])) for start, end in changed)
            return MemoryImage(self.base.hold(), copies)
        self._new_base(changed)
        return MemoryImage(self.base.hold())

    def _take_all(self) -> None:
        """Have every page here that somebody supplies."""
        if _LIBC.madvise(self.address, self.size, _MADV_POPULATE_READ):
            # Linux before 5.14.
            for start in range(0, self.size, PAGE):
                self.view[start]

    def forget_same(self, limit: int = COPY_LIMIT) -> None:
        """Give pages back that were written to, and are as in the base, to the host.

        Nobody may read or write meanwhile, but `close` may be called. Nothing happens to what is no
        copy, or where more than `limit` bytes were written to.
        """
        with self._closing:
            if self._closed or self._anonymous or not self.private or self._supplied:
                return
            changed = self.changed()
            if sum(end - start for start, end in changed) <= limit:
                self._forget_same(changed, set())

    def _forget_same(
        self, changed: list[tuple[int, int]], known: set[int]
    ) -> list[tuple[int, int]]:
        """Give pages back that were written to and are as in the base; return the other runs.

        Of what a guest that idles has written to, that is a third. `known` are pages that are not
        compared any more; those that differ are added.
        """
        pages = [page for start, end in changed for page in range(start, end, PAGE)]
        for page in pages:
            if page in known:
                continue
            if self.view[page : page + PAGE].tobytes() == os.pread(self.base.fd, PAGE, page):
                _LIBC.madvise(self.address + page, PAGE, _MADV_DONTNEED)
            else:
                known.add(page)
        return _runs(page for page in pages if page in known)

    def _base_size(self) -> int:
        """Return how many bytes a new base would take, at least."""
        return sum(end - start for start, end in self.base.extents(0, self.size))

    def _new_base(self, changed: list[tuple[int, int]]) -> None:
        fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, self.size)
            for start, end in [*self.base.extents(0, self.size), *changed]:
                _write_all(fd, self.view[start:end], start)
        except BaseException:
            os.close(fd)
            raise
        old, self.base = self.base, MemoryBase(fd, self.size, owned=True)
        self._copied, self._differing, self._supplied = 0, set(), False
        self._place()
        old.release()

    def become(self, image: MemoryImage) -> None:
        """Have the content of `image` instead, as a private copy of it.

        Nobody may read or write meanwhile. Address and views stay good. Raises HostError.
        """
        old, self.base = self.base, image.base.hold()
        self._copied, self._differing = 0, set()
        self.private, self._anonymous, self._supplied = True, False, False
        self._place()
        old.release()
        for offset, data in image.changed:
            self.view[offset : offset + len(data)] = data

    def changed(self, first: int = 0, last: int | None = None) -> list[tuple[int, int]]:
        """Return (start, end) of the pages, as runs, that differ from the base or may do so.

        Those between `first` and `last` only, which are rounded to whole pages.
        """
        first, last = first & -PAGE, -(-(self.size if last is None else last) // PAGE) * PAGE
        if not self.private:
            return list(self.base.extents(first, last))
        found = self._anonymous_pages(self.address + first, last - first)
        return [(start - self.address, end - self.address) for start, end in found]

    def _anonymous_pages(self, address: int, size: int) -> list[tuple[int, int]]:
        """Return (start, end) of pages of a private mapping that are not its file's, as runs."""
        try:
            descriptor = _open_pagemap()
        except OSError:
            # A host without /proc: any page may differ.
            return [(address, address + size)] if size > 0 else []
        try:
            found = scan_pages(descriptor, address, size)
            return read_pages(descriptor, address, size) if found is None else found
        finally:
            os.close(descriptor)

    def filled(self) -> list[tuple[int, int]]:
        """Return (start, end) of what may hold other than zeroes, as runs; some may be twice."""
        changed = self.changed() if self.private else []
        return [*self.base.extents(0, self.size), *changed]

    def touched(self) -> list[tuple[int, int]]:
        """Return (start, end) of the pages, as runs, that this mapping has in the host's memory."""
        try:
            descriptor = _open_pagemap()
        except OSError:
            return [(0, self.size)]
        try:
            found = read_pages(descriptor, self.address, self.size, _PRESENT)
        finally:
            os.close(descriptor)
        return [(start - self.address, end - self.address) for start, end in found]

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` to `offset`; for much data twice as quick as through `view`.

        Pages that were never touched cost no page fault each, and other threads run
        meanwhile. Raises HostError.
        """
        if self.private or offset >= self.size:
            _copy(self.view[offset : offset + len(data)], memoryview(data))
            return
        try:
            _write_all(self.base.fd, data, offset)
        except OSError as cause:
            raise HostError(
                f"the host has no memory for the guest: {cause.strerror}",
                hint="give the machine less --memory",
            ) from cause

    def clear(self, offset: int, count: int) -> None:
        """Make `count` bytes zero; pages that were never touched stay so."""
        end = offset + count
        if offset >= self.size:
            self.view[offset:end] = bytes(count)
            return
        for start, stop in [*self.base.extents(offset, end), *self._changed_within(offset, end)]:
            self.view[start:stop] = bytes(stop - start)

    def discard(self, offset: int, count: int) -> None:
        """Give whole pages back to the host: `offset` and `count` are multiples of PAGE.

        They hold zeroes then; in a copy, what it began with.
        """
        if offset >= self.size:
            # What lies in a file is not ours to give away.
            return
        # A copy's own pages go, and with them what it had changed; shared memory gets a hole.
        advice = _MADV_DONTNEED if self.private else _MADV_REMOVE
        _LIBC.madvise(self.address + offset, count, advice)

    def _changed_within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        for first, last in self.changed(start, end) if self.private and start < end else ():
            if first < end and start < last:
                yield max(first, start), min(last, end)

    def keep_from_children(self) -> None:
        """Leave the mapping out of processes forked from now on, until the next `freeze`.

        A child costs nothing for it, and must not touch it; images can be mapped there.
        """
        _LIBC.madvise(self.address, self.size, _MADV_DONTFORK)

    def close(self) -> None:
        """Give the memory back; where views of it are left, with the last of them."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self.base.release()
        with contextlib.suppress(BufferError):
            self.view.release()
            self._map.close()


class RepeatedMemory:
    """`count` private copies of an image side by side, which share what they do not write to.

    `address` is that of the first. Raises HostError.
    """

    def __init__(self, image: MemoryImage, count: int) -> None:
        self._base = image.base.hold()
        size = image.size
        try:
            self._map = mmap.mmap(
                -1, count * size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            )
            self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
            for start in range(self.address, self.address + count * size, size):
                _map_private(image.base, start)
        except (OSError, HostError):
            self._base.release()
            raise

    def discard(self) -> None:
        """Have the content of the image again, and none of the host's memory."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Give the memory back."""
        self._base.release()
        self._map.close()


def _map_private(base: MemoryBase, address: int) -> None:
    """Map a base over what is at an address, privately. Raises HostError."""
    flags = mmap.MAP_PRIVATE | _MAP_NORESERVE | _MAP_FIXED
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    if _LIBC.mmap(address, base.size, protection, flags, base.fd, 0) != address:
        raise _no_memory("a copy of a machine", base.size)


def _no_memory(name: str, size: int, cause: Exception | None = None) -> HostError:
    if isinstance(cause, OSError) and cause.errno == errno.EFBIG:
        return too_large(f"{format_size(size)} of memory for {name}", size=size)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        return HostError(
            f"no {format_size(size)} of memory for {name}: "
            f"the limit of address space here is {format_size(limit)}",
            hint="raise it (`ulimit -v unlimited`; RLIMIT_AS), or give the machine less --memory",
            size=size,
        )
    return HostError(
        f"no {size} bytes of memory for {name}",
        hint="give the machine less --memory",
        size=size,
    )


def _runs(pages: Iterable[int]) -> list[tuple[int, int]]:
    """Return (start, end) of ascending pages that lie side by side."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and runs[-1][1] == page:
            runs[-1] = runs[-1][0], page + PAGE
        else:
            runs.append((page, page + PAGE))
    return runs


def _copy(target: memoryview, source: memoryview) -> None:
    """Copy; where the source's address can be had, without the interpreter's lock."""
    if source.readonly or not source:
        target[:] = source
        return
    start = ctypes.addressof(ctypes.c_char.from_buffer(source))
    ctypes.memmove(ctypes.addressof(ctypes.c_char.from_buffer(target)), start, len(source))


def _write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        count = os.pwrite(fd, rest, offset)
        offset, rest = offset + count, rest[count:]


def scan_pages(pagemap: int, address: int, size: int) -> list[tuple[int, int]] | None:
    """Return the runs of anonymous pages of a private mapping, as host addresses.

    By an ioctl that Linux has since 6.7; None where there is none.
    """
    regions = (ctypes.c_uint64 * (3 * _SCAN_REGIONS))()
    runs: list[tuple[int, int]] = []
    at, end = address, address + size
    while at < end:
        argument = bytearray(
            _SCAN.pack(
                _SCAN.size, 0, at, end, 0, ctypes.addressof(regions), _SCAN_REGIONS, 0,
                _IS_FILE, _IS_FILE, _IS_PRESENT | _IS_SWAPPED, 0,
            )
        )  # fmt: skip
        try:
            count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, argument)
        except OSError as fault:
            if fault.errno in (errno.ENOTTY, errno.EINVAL):
                return None
            raise
        at = _SCAN.unpack(argument)[4]
        for index in range(0, 3 * count, 3):
            start, stop = regions[index], regions[index + 1]
            if runs and runs[-1][1] == start:
                runs[-1] = runs[-1][0], stop
            else:
                runs.append((start, stop))
    return runs


def read_pages(
    pagemap: int, address: int, size: int, wanted: bytes = _ANONYMOUS
) -> list[tuple[int, int]]:
    """As `scan_pages`, from the table itself; `wanted` judges entries by their highest byte."""
    entries = os.pread(pagemap, size // PAGE * 8, address // PAGE * 8)
    kinds = entries[7::8].translate(wanted)
    runs = []
    start = kinds.find(1)
    while start >= 0:
        stop = kinds.find(0, start)
        if stop < 0:
            stop = len(kinds)
        runs.append((address + start * PAGE, address + stop * PAGE))
        start = kinds.find(1, stop)
    return runs


# Translated code refers to itself by 31-bit absolute addresses.
_LOW_LIMIT = 1 << 31
_MAP_32BIT = 0x40  # x86 Linux: map in the low 2 GiB
_MAP_FIXED_NOREPLACE = 0x100000
# Where Linux looks for room with MAP_32BIT (mmap(2)): in the second GiB, from somewhere in its
# first 32 MiB. Since Linux 6.7 a mapping of a large page or more may begin at a multiple of one,
# and leaves as much unused before it.
SPACE = (1 << 30) - (32 << 20)


def map_program(fd: int, start: int, code: int, tables: int) -> int:
    """Map a program from a file, for the process's life; return its address.

    `code` bytes from `start` on can be read and run, `tables` bytes behind them read and written,
    the latter for this process alone; all are multiples of a page. Raises HostError.
    """
    private = mmap.MAP_PRIVATE
    address = _LIBC.mmap(
        None, code + tables, mmap.PROT_READ, private | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0
    )
    if address in (None, _FAILED):
        raise HostError("the host gives no address space for a program", size=code + tables)
    for place, size, at, how in (
        (address, code, start, mmap.PROT_READ | mmap.PROT_EXEC),
        (address + code, tables, start + code, mmap.PROT_READ | mmap.PROT_WRITE),
    ):
        if size and _LIBC.mmap(place, size, how, private | _MAP_FIXED, fd, at) != place:
            _LIBC.munmap(address, code + tables)
            # A file system without programs, or a policy against them.
            raise HostError("the host maps no program from a file of the cache", size=size)
    return int(address)


def map_over(address: int, size: int, fd: int, offset: int) -> bool:
    """Map a part of a file, to be read, written for this process alone, and run, over ours.

    Address and offset are multiples of a page. False where the host does not map what can be
    both, and nothing has changed.
    """
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    flags = mmap.MAP_PRIVATE | _MAP_FIXED
    return bool(_LIBC.mmap(address, size, protection, flags, fd, offset) == address)


class ExecutableMemory:
    """`size` bytes of memory below 2 GiB that can be written and run.

    They lie at `wanted` where that is free, else anywhere, and are then `elsewhere` bytes if that
    is given; where there is no room for so many, at least `least`. Raises HostError.
    """

    # Addresses of those that there are, and what each takes of `SPACE`. Finalizers change it, which
    # run in the middle of anything: nothing here takes a lock, or goes through it step by step.
    _taken: ClassVar[dict[int, int]] = {}

    def __init__(
        self,
        size: int,
        wanted: int = 0,
        elsewhere: int | None = None,
        least: int | None = None,
    ) -> None:
        address: int | None = _FAILED
        # Root may map address 0, and would get that.
        if wanted:
            address = _map_low(wanted, size)
        if address == _FAILED:
            size = size if elsewhere is None else elsewhere
            address = _map_low(None, size)
            while address == _FAILED and least is not None and size > least:
                size = max(size // 2 & -PAGE, least)
                address = _map_low(None, size)
        if address is None or address == _FAILED or address + size > _LOW_LIMIT:
            raise HostError(
                "the host gives no executable memory for translated code",
                hint="is a security policy (SELinux, grsecurity) forbidding writable code?",
                size=size,
            )
        self.size = size
        self.address = address
        if address >= _LOW_LIMIT // 2:
            self._taken[address] = size + _LARGE_PAGE if size >= _LARGE_PAGE else size
        # Whoever forgets to close must not use up the little that there is below 2 GiB.
        self._release = weakref.finalize(self, self._unmap, address, size)

    @classmethod
    def _unmap(cls, address: int, size: int) -> None:
        # First: the address may be another's at once.
        cls._taken.pop(address, None)
        _LIBC.munmap(address, size)

    @classmethod
    def room(cls) -> int:
        """Return how many bytes of SPACE none of this process's has."""
        return SPACE - sum(list(cls._taken.values()))

    def close(self) -> None:
        """Give the memory back."""
        self._release()


def _map_low(address: int | None, size: int) -> int | None:
    """Map memory that can be run at an address that is free, or anywhere; or return _FAILED."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_32BIT | _MAP_NORESERVE
    if address is not None:
        flags |= _MAP_FIXED_NOREPLACE
    found: int | None = _LIBC.mmap(address, size, protection, flags, -1, 0)
    return found
