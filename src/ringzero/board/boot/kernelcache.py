"""Kernels unpacked once: the next start of the same file copies it into memory and no more.

One file for each kernel file, named by what `stat` says of that one (device,
inode, size, times), so that nothing of it is read or hashed again. A page or
more of header (its length, then JSON), then the segments' content in whole
pages, long runs of zeros left out. Its own time of modification is set to the
kernel's: whatever writes to it later betrays itself.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ringzero.board.boot.kernelimage import KernelImage, Segment
from ringzero.errors import RingzeroError
from ringzero.host.files import atomic_file, map_file, newest_first

_SUFFIX = ".kernel"
# Raised when the content of these files changes.
_FORMAT = 1
_PAGE = 4096
_LENGTH_SIZE = 8
# Shorter runs of zero pages are copied with what surrounds them.
_WORTH_SKIPPING = 16
# The clock that stamps files ticks in milliseconds: a file changed more recently than this
# may change again and look the same. In nanoseconds.
_SETTLED = 1_000_000_000
# A file that is smaller is read as quickly as its copy would be, in bytes.
_WORTH_KEEPING = 1 << 20
# Kernels kept; the ones made last.
_KEPT = 8


def recall(status: os.stat_result, cache: Path) -> KernelImage | None:
    """Return the kernel of the file with `status`, or None when it is not kept or not whole."""
    try:
        data, own = map_file(_path(status, cache))
        if own.st_mtime_ns != status.st_mtime_ns:
            return None
        length = int.from_bytes(data[:_LENGTH_SIZE], "little")
        header = json.loads(bytes(data[_LENGTH_SIZE : _LENGTH_SIZE + length]))
        if header["size"] != len(data):
            return None
        return KernelImage(
            header["kind"],
            header["entry"],
            tuple(
                Segment(address, data[offset : offset + count], size)
                for address, size, offset, count in header["segments"]
            ),
            header["version"],
            bytes.fromhex(header["setup_header"]),
            header["command_line_size"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(status: os.stat_result, image: KernelImage, cache: Path) -> None:
    """Keep `image` for the next start; without room for it that is slower, and no more."""
    young = time.time_ns() - max(status.st_ctime_ns, status.st_mtime_ns) < _SETTLED
    if young or status.st_size < _WORTH_KEEPING:
        return
    # The header's numbers hang on its own length; with spare room one round settles it.
    room = (len(_header(image, 0)) + _LENGTH_SIZE) * 2
    start = -(-room // _PAGE) * _PAGE
    header = _header(image, start)
    try:
        with atomic_file(_path(status, cache)) as file:
            file.write(len(header).to_bytes(_LENGTH_SIZE, "little") + header)
            file.write(bytes(start - _LENGTH_SIZE - len(header)))
            for segment in image.segments:
                file.write(segment.data)
                file.write(bytes(-len(segment.data) % _PAGE))
            file.flush()
            os.utime(file.fileno(), ns=(status.st_mtime_ns, status.st_mtime_ns))
        _forget_old(cache)
    except (RingzeroError, OSError):
        return


def sparse(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Return the same memory as more segments, which leave out long runs of zeros."""
    found = []
    for segment in segments:
        runs = _runs(segment.data)
        ends = [start for start, _ in runs[1:]] + [segment.size]
        for (start, stop), end in zip(runs, ends, strict=True):
            found.append(Segment(segment.address + start, segment.data[start:stop], end - start))
    return tuple(found)


def _runs(data: memoryview) -> list[tuple[int, int]]:
    """Return where `data` has something in it: (start, stop), the first from 0 on."""
    zeros = bytes(_PAGE)
    runs = [(0, 0)]
    for at in range(0, len(data), _PAGE):
        page = data[at : at + _PAGE]
        if page == zeros[: len(page)]:
            continue
        start, stop = runs[-1]
        if at - stop < _WORTH_SKIPPING * _PAGE:
            runs[-1] = start, at + len(page)
        else:
            runs.append((at, at + len(page)))
    return runs


def _header(image: KernelImage, start: int) -> bytes:
    segments = []
    offset = start
    for segment in image.segments:
        segments.append((segment.address, segment.size, offset, len(segment.data)))
        offset += -(-len(segment.data) // _PAGE) * _PAGE
    return json.dumps(
        {
            "format": _FORMAT,
            "size": offset,
            "kind": image.kind,
            "entry": image.entry,
            "version": image.version,
            "setup_header": image.setup_header.hex(),
            "command_line_size": image.command_line_size,
            "segments": segments,
        }
    ).encode()


def _path(status: os.stat_result, cache: Path) -> Path:
    identity = (status.st_dev, status.st_ino, status.st_size)
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return cache / ("-".join(f"{n:x}" for n in (_FORMAT, *identity, *times)) + _SUFFIX)


def _forget_old(cache: Path) -> None:
    for path in newest_first(cache.glob(f"*{_SUFFIX}"))[_KEPT:]:
        path.unlink(missing_ok=True)
