"""cpio archives in the "newc" format, which the Linux kernel unpacks as initramfs.

Documentation/driver-api/early-userspace/buffer-format.rst of the Linux source:
a 110-byte ASCII header ("070701" and thirteen 8-digit hexadecimal fields), the
name with its NUL, the content, each padded to 4 bytes; "TRAILER!!!" ends it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ringzero.errors import GuestImageError

_MAGIC = b"070701"
_MAGIC_CRC = b"070702"
_HEADER = 110
_TRAILER = "TRAILER!!!"
# An 8-digit hexadecimal size cannot say more.
_MAX_CONTENT = 0xFFFFFFFF


@dataclass(frozen=True)
class Entry:
    """One file: `mode` holds type and permission bits (inode(7)), `data` content or link target."""

    name: str
    mode: int
    data: bytes = b""
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    device: tuple[int, int] = (0, 0)


def write(entries: Iterable[Entry], file: BinaryIO) -> int:
    """Write `entries` and the trailer to `file`; return the size in bytes.

    Parents must come before what they hold, as the kernel creates none.
    """
    size = 0
    for inode, entry in enumerate(entries, start=1):
        size += _write_one(entry, inode, file)
    size += _write_one(Entry(_TRAILER, 0), 0, file)
    return size


def _write_one(entry: Entry, inode: int, file: BinaryIO) -> int:
    if len(entry.data) > _MAX_CONTENT:
        raise GuestImageError(f"{entry.name} is too large for an initrd (4 GiB)")
    name = entry.name.encode("utf-8", "surrogateescape") + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (
        *(inode, entry.mode, entry.uid, entry.gid, links, entry.mtime, len(entry.data)),
        *(0, 0, major, minor, len(name), 0),
    )
    head = _MAGIC + b"".join(b"%08x" % field for field in fields) + name
    parts = (head, _padding(len(head)), entry.data, _padding(len(entry.data)))
    for part in parts:
        file.write(part)
    return sum(map(len, parts))


def _padding(size: int) -> bytes:
    return bytes(-size % 4)


def read(archive: bytes) -> Iterator[Entry]:
    """Yield the entries of an uncompressed archive up to its trailer.

    Raises GuestImageError, with the offset, when the archive is damaged.
    """
    view = memoryview(archive)
    offset = 0
    while True:
        header = bytes(view[offset : offset + _HEADER])
        if len(header) < _HEADER or header[:6] not in (_MAGIC, _MAGIC_CRC):
            raise GuestImageError("not a newc cpio archive, or cut short", offset=offset)
        try:
            numbers = [int(header[i : i + 8], 16) for i in range(6, _HEADER, 8)]
        except ValueError:
            raise GuestImageError("damaged cpio header", offset=offset) from None
        _, mode, uid, gid, _, mtime, size, _, _, major, minor, name_size, _ = numbers
        start = offset + _HEADER + name_size
        start += -start % 4
        name = bytes(view[offset + _HEADER : offset + _HEADER + name_size])
        if not name.endswith(b"\0") or start + size > len(view):
            raise GuestImageError("cpio archive is cut short", offset=offset)
        text = name[:-1].decode("utf-8", "surrogateescape")
        if text == _TRAILER:
            return
        data = bytes(view[start : start + size])
        yield Entry(text, mode, data, uid, gid, mtime, (major, minor))
        offset = start + size
        offset += -offset % 4
