"""Layers of images, written: tar files that are the same whenever what is in them is."""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ringzero.errors import GuestImageError
from ringzero.host.files import host_error
from ringzero.records import mutable_record, record

_BLOCK = 512
_XATTR = "SCHILY.xattr."
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}
# Marks what a layer takes away of those below it (OCI image-spec, layer.md).
WHITEOUT = b".wh."
# The size of a layer without files: the two blocks that end a tar.
EMPTY = 2 * _BLOCK

# Later than any time that a layer tells: a file's becomes the epoch; as the epoch it keeps all.
_NOW = KEEP = 1 << 62


@record
class Layer:
    """A layer: a plain tar, by the digest that is its blob's and its `diff_id` alike."""

    digest: str
    size: int


@mutable_record
class Entry:
    """A file of a layer by its name without a leading slash; `mode` with the type's bits.

    `content` yields the bytes of a regular file, `size` of them. A hard link has the mode 0.
    `mtime` is in seconds.
    """

    name: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = _NOW
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] | None = None
    size: int = 0
    content: Callable[[], Iterator[bytes]] | None = None


def write(entries: Iterable[Entry], file: BinaryIO, epoch: int) -> Layer:
    """Write a layer; times after `epoch`, in seconds, become that. Raises GuestImageError, OSError.

    Equal entries make equal bytes, in whichever order they come; hard links stand last.
    """
    digest, size = hashlib.sha256(), 0

    def put(data: bytes) -> None:
        nonlocal size
        file.write(data)
        digest.update(data)
        size += len(data)

    for entry in sorted(entries, key=lambda entry: (not entry.mode, entry.name)):
        put(_header(entry, epoch))
        if entry.content is None or not stat.S_ISREG(entry.mode):
            continue
        written = 0
        for piece in entry.content():
            put(piece)
            written += len(piece)
        if written != entry.size:
            raise GuestImageError(
                f"{os.fsdecode(entry.name)} changed while it was read: "
                f"{written} bytes, not {entry.size}",
                hint="try again when nobody writes to it",
            )
        put(bytes(-written % _BLOCK))
    put(bytes(EMPTY))
    return Layer(f"sha256:{digest.hexdigest()}", size)


def _header(entry: Entry, epoch: int) -> bytes:
    info = tarfile.TarInfo(os.fsdecode(entry.name))
    info.mode = stat.S_IMODE(entry.mode)
    info.uid, info.gid = entry.uid, entry.gid
    info.mtime = max(0, min(entry.mtime, epoch))
    info.type = _KINDS[stat.S_IFMT(entry.mode)] if entry.mode else tarfile.LNKTYPE
    info.linkname = os.fsdecode(entry.link)
    info.size = entry.size if stat.S_ISREG(entry.mode) else 0
    info.devmajor, info.devminor = entry.device
    info.pax_headers = {
        _XATTR + os.fsdecode(name): os.fsdecode(value)
        for name, value in sorted((entry.xattrs or {}).items())
    }
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def file_content(path: Path) -> Callable[[], Iterator[bytes]]:
    """Return what yields a host file's bytes. It raises HostError."""

    def read() -> Iterator[bytes]:
        try:
            with path.open("rb") as file:
                while data := file.read(1 << 20):
                    yield data
        except OSError as fault:
            raise host_error(fault, "read", path) from fault

    return read
