"""Archives that ADD unpacks: tar, packed by gzip, bzip2, xz, zstd or not at all."""

from __future__ import annotations

import io
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from ringzero.build.entries import Entry
from ringzero.errors import GuestImageError
from ringzero.image import compression
from ringzero.image.layers import tar
from ringzero.image.layers.plain import map_whole
from ringzero.settings import IMAGE_LIMIT

_MAGIC, _MAGIC_AT = b"ustar", 257
_HEAD = 512


def unpacked(entry: Entry) -> list[Entry] | None:
    """Return what an archive holds, names relative to it; None for a file that is none.

    Owners, modes, times and attributes are the archive's. Raises GuestImageError for a damaged
    one, or one that unpacks to more than RINGZERO_IMAGE_LIMIT.
    """
    if not stat.S_ISREG(entry.mode) or entry.content is None:
        return None
    packed = io.BufferedReader(_Content(entry.content()))
    head = packed.peek(_HEAD)
    if not compression.is_compressed(head) and not _is_tar(head):
        return None
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the entries' content lies in it
    try:
        is_tar = _pour(compression.pieces(head, packed), file)
    except compression.DamagedError as fault:
        file.close()
        raise GuestImageError(f"an archive is damaged: {fault}") from fault
    if not is_tar:
        file.close()
        return None
    archive = map_whole(file.fileno())
    file.close()
    return list(members(archive))


class _Content(io.RawIOBase):
    """What yields a file's bytes, as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        data, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def _is_tar(head: bytes) -> bool:
    return head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC


def _pour(pieces: Iterator[bytes], file: BinaryIO) -> bool:
    """Write all of it; False where it turns out to be no tar."""
    limit, size, head = IMAGE_LIMIT.get(), 0, b""
    for piece in pieces:
        if len(head) < _HEAD:
            head += piece[: _HEAD - len(head)]
            if len(head) >= _HEAD and not _is_tar(head):
                return False
        size += len(piece)
        if size > limit:
            raise GuestImageError(
                f"an archive unpacks to more than {limit} bytes",
                hint="RINGZERO_IMAGE_LIMIT allows more",
            )
        file.write(piece)
    file.flush()
    return len(head) >= _HEAD


def members(archive: memoryview) -> Iterator[Entry]:
    """Yield what a plain tar holds, names relative to it. Raises GuestImageError."""
    for member in tar.read(archive):
        parts = [part for part in member.name.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise GuestImageError("an archive holds a name that leads out of it")
        if parts:
            yield Entry(
                b"/".join(parts),
                member.mode,
                member.uid,
                member.gid,
                member.mtime // 1_000_000_000,
                member.link,
                member.device,
                dict(member.xattrs or {}),
                member.size if stat.S_ISREG(member.mode) else 0,
                content_of(archive, member.offset, member.size),
            )


def content_of(archive: memoryview, offset: int, size: int) -> Callable[[], Iterator[bytes]]:
    """Return what yields a part of an archive, a piece at a time."""

    def content() -> Iterator[bytes]:
        for at in range(offset, offset + size, 1 << 20):
            yield bytes(archive[at : min(at + (1 << 20), offset + size)])

    return content
