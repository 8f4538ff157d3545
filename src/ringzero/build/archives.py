"""Archives that ADD unpacks: tar, packed by gzip, bzip2, xz, zstd or not at all."""

from __future__ import annotations

import bz2
import lzma
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from ringzero.build.entries import Entry
from ringzero.errors import GuestImageError, MissingToolError
from ringzero.image.layers import tar
from ringzero.image.layers.plain import map_whole
from ringzero.settings import IMAGE_LIMIT

_MAGIC, _MAGIC_AT = b"ustar", 257
_HEAD = 512
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class _Unpacker(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


def _zstd() -> _Unpacker:
    try:
        import zstandard
    except ImportError as fault:
        raise MissingToolError(
            "archives packed by zstd need the package zstandard", hint="pip install zstandard"
        ) from fault
    return zstandard.ZstdDecompressor().decompressobj()


_PACKED: tuple[tuple[bytes, Callable[[], _Unpacker]], ...] = (
    (b"\x1f\x8b", lambda: zlib.decompressobj(_GZIP_WINDOW)),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\0", lzma.LZMADecompressor),
    (b"\x28\xb5\x2f\xfd", _zstd),
)


def unpacked(entry: Entry) -> list[Entry] | None:
    """Return what an archive holds, names relative to it; None for a file that is none.

    Owners, modes, times and attributes are the archive's. Raises GuestImageError for a damaged
    one, or one that unpacks to more than RINGZERO_IMAGE_LIMIT.
    """
    if not stat.S_ISREG(entry.mode) or entry.content is None:
        return None
    pieces = entry.content()
    head = next(pieces, b"")
    make = next((make for magic, make in _PACKED if head.startswith(magic)), None)
    if make is None and head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        return None
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the entries' content lies in it
    if not _pour(_plain(head, pieces, make() if make else None), file):
        file.close()
        return None
    archive = map_whole(file.fileno())
    file.close()
    return list(_entries(archive))


def _plain(head: bytes, pieces: Iterator[bytes], unpacker: _Unpacker | None) -> Iterator[bytes]:
    """Yield the plain bytes. Raises GuestImageError."""
    try:
        yield unpacker.decompress(head) if unpacker else head
        for piece in pieces:
            if unpacker is not None and getattr(unpacker, "eof", False):
                return
            yield unpacker.decompress(piece) if unpacker else piece
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as fault:
        raise GuestImageError(f"an archive is damaged: {fault}") from fault


def _pour(pieces: Iterator[bytes], file: BinaryIO) -> bool:
    """Write all of it; False where it turns out to be no tar."""
    limit, size, head = IMAGE_LIMIT.get(), 0, b""
    for piece in pieces:
        if len(head) < _HEAD:
            head += piece[: _HEAD - len(head)]
            if len(head) >= _HEAD and head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
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


def _entries(archive: memoryview) -> Iterator[Entry]:
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
