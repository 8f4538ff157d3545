"""Immutable files named by their content: what snapshots keep memory and disks in.

A blob is a sparse file. Its name is a SHA-256 over its size and its blocks
that are not all zeroes, each with its offset, so that holes and written zeroes
are the same. A *delta* is a blob that says how a memory differs from another
one: DELTA header, (offset, length) of each run, then the runs' bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from ringzero.errors import StateError
from ringzero.host.files import host_error
from ringzero.host.memory import HostMemory, MemoryImage
from ringzero.units import KIB, MIB

BLOCK = 64 * KIB
PAGE = 4096
DIGEST = re.compile(r"[0-9a-f]{64}")
# Magic, size of the memory, number of runs.
DELTA = struct.Struct("<8sQQ")
DELTA_MAGIC = b"RZDELTA1"
RUN = struct.Struct("<QQ")
# A delta of more is written as a whole, because all of it is read at a restore.
LARGEST_DELTA = 64 * MIB

_ZEROES = bytes(BLOCK)
# Most blocks that are not all zeroes are none in their first bytes.
_SAMPLE = 32
Blocks = Iterable[tuple[int, bytes]]


class Readable(Protocol):
    """As much of a disk as is read here."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def block_status(self, offset: int = 0, length: int | None = None) -> Iterator[Any]: ...


def file_blocks(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of the blocks of a file that are not all zeroes, ascending."""
    for offset in _data_blocks(fd, size):
        data = _read(fd, offset, min(BLOCK, size - offset))
        if data != _ZEROES[: len(data)]:
            yield offset, data


def _data_blocks(fd: int, size: int) -> Iterator[int]:
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as fault:
            if fault.errno == errno.ENXIO:
                return
            raise
        stop = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        first = max(at, start // BLOCK * BLOCK)
        yield from range(first, stop, BLOCK)
        at = -(-stop // BLOCK) * BLOCK


def _read(fd: int, offset: int, length: int) -> bytes:
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise StateError("a file of a snapshot is shorter than it was", offset=offset)
        data += more
    return data


def memory_blocks(image: MemoryImage) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of a memory that are not all zeroes, ascending."""
    patches: dict[int, list[tuple[int, bytes]]] = {}
    for offset, data in image.changed:
        for block in range(offset // BLOCK * BLOCK, offset + len(data), BLOCK):
            start, stop = max(block, offset), min(block + BLOCK, offset + len(data))
            patches.setdefault(block, []).append(
                (start - block, data[start - offset : stop - offset])
            )
    fd, size = image.base.fd, image.size
    for block in sorted({*_data_blocks(fd, size), *patches}):
        data = _read(fd, block, min(BLOCK, size - block))
        if block in patches:
            patched = bytearray(data)
            for at, bytes_ in patches[block]:
                patched[at : at + len(bytes_)] = bytes_
            data = bytes(patched)
        if data != _ZEROES[: len(data)]:
            yield block, data


def pieces(memory: HostMemory) -> Iterator[tuple[int, memoryview]]:
    """Yield (offset, content) of a memory where it is not all zeroes; nobody writes to it.

    The content is where it lies: to copy it takes as long as to write it.
    """
    for start, end in memory.filled():
        begin = start
        for at in range(start, end, BLOCK):
            stop = min(at + BLOCK, end)
            if _is_zero(memory.view[at:stop]):
                if begin < at:
                    yield begin, memory.view[begin:at]
                begin = stop
        if begin < end:
            yield begin, memory.view[begin:end]


def _is_zero(data: memoryview) -> bool:
    return data[:_SAMPLE] == _ZEROES[: len(data[:_SAMPLE])] and bytes(data) == _ZEROES[: len(data)]


def disk_blocks(disk: Readable) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of a disk that are not all zeroes, ascending."""
    last = -1
    for extent in disk.block_status(0, disk.size):
        if extent.kind.name in ("ZERO", "ABSENT"):
            continue
        first = extent.offset // BLOCK * BLOCK
        for block in range(max(first, last + 1), extent.offset + extent.length, BLOCK):
            data = bytes(disk.read(block, min(BLOCK, disk.size - block)))
            last = block
            if data != _ZEROES[: len(data)]:
                yield block, data


class Digest:
    """The name of a blob, as its blocks come."""

    def __init__(self, size: int) -> None:
        self._hash = hashlib.sha256(struct.pack("<Q", size))

    def add(self, offset: int, data: bytes) -> None:
        self._hash.update(struct.pack("<QQ", offset, len(data)))
        self._hash.update(data)

    def text(self) -> str:
        return self._hash.hexdigest()


def digest_file(path: Path) -> str:
    """Return the digest of a file; raises HostError."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = Digest(size)
            for offset, data in file_blocks(file.fileno(), size):
                digest.add(offset, data)
            return digest.text()
    except OSError as fault:
        raise host_error(fault, "read", path) from fault


def write_blob(directory: Path, size: int, blocks: Blocks) -> str:
    """Write blocks to a new blob in `directory`, safely on the disk; return its digest.

    Raises HostError (disk full), after which nothing is left.
    """
    temporary = directory / f"new-{os.urandom(8).hex()}"
    digest = Digest(size)

    def fill(fd: int) -> None:
        os.ftruncate(fd, size)
        for offset, data in blocks:
            digest.add(offset, data)
            write_all(fd, data, offset)

    write_file(temporary, fill)
    path = directory / digest.text()
    temporary.replace(path)
    return path.name


def write_file(path: Path, fill: Callable[[int], None]) -> None:
    """Have `fill` write a new file by its descriptor, safely on the disk, or nothing. HostError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            fill(fd)
            os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException as fault:
        with contextlib.suppress(OSError):
            path.unlink()
        if isinstance(fault, OSError):
            raise host_error(fault, "write", path) from fault
        raise


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(fd, rest, offset)
        offset, rest = offset + count, rest[count:]


# ---- deltas -------------------------------------------------------------------


def differences(size: int, blocks: Blocks, others: Blocks) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, page) of each page of `blocks` that differs from the one in `others`."""
    mine, theirs = iter(blocks), iter(others)
    here, there = next(mine, None), next(theirs, None)
    while here is not None or there is not None:
        offset = min(item[0] for item in (here, there) if item is not None)
        length = min(BLOCK, size - offset)
        new = old = _ZEROES[:length]
        if here is not None and here[0] == offset:
            new, here = here[1], next(mine, None)
        if there is not None and there[0] == offset:
            old, there = there[1], next(theirs, None)
        if new == old:
            continue
        for at in range(0, length, PAGE):
            if new[at : at + PAGE] != old[at : at + PAGE]:
                yield offset + at, new[at : at + PAGE]


def write_delta(directory: Path, size: int, pages: Blocks) -> str | None:
    """Write a delta of these pages as a blob; None, and nothing, when it would be too large."""
    runs: list[tuple[int, bytearray]] = []
    total = 0
    for offset, page in pages:
        total += len(page)
        if total > LARGEST_DELTA:
            return None
        if runs and runs[-1][0] + len(runs[-1][1]) == offset:
            runs[-1][1].extend(page)
        else:
            runs.append((offset, bytearray(page)))
    head = DELTA.pack(DELTA_MAGIC, size, len(runs))
    head += b"".join(RUN.pack(offset, len(data)) for offset, data in runs)
    content = head + b"".join(data for _, data in runs)
    pieces = ((at, content[at : at + BLOCK]) for at in range(0, len(content), BLOCK))
    return write_blob(directory, len(content), (p for p in pieces if any(p[1])))


def read_delta(path: Path, size: int) -> tuple[tuple[int, bytes], ...]:
    """Return (offset, bytes) of the runs of a delta for a memory of `size` bytes.

    Every number in it is checked. Raises StateError, HostError.
    """
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise host_error(fault, "read", path) from fault
    broken = StateError("the snapshot's memory is damaged", path=path)
    if len(content) < DELTA.size:
        raise broken
    magic, whole, count = DELTA.unpack_from(content)
    at = DELTA.size + RUN.size * count
    if magic != DELTA_MAGIC or whole != size or at > len(content):
        raise broken
    runs, end = [], 0
    for offset, length in RUN.iter_unpack(content[DELTA.size : at]):
        if offset < end or length == 0 or offset % PAGE or length % PAGE or offset + length > size:
            raise broken
        end = offset + length
        runs.append((offset, content[at : at + length]))
        at += length
    if at != len(content):
        raise broken
    return tuple(runs)
