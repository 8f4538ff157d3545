"""Compressed files by what they begin with, gzip, bzip2, xz or zstd, read as their plain bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any

from ringzero.units import MIB

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_BZIP2, _XZ = b"BZh", b"\xfd7zXZ\0"
# So many bytes tell.
HEAD = len(_XZ)
_PIECE = MIB
# zstd's window, by the specification's recommendation (RFC 8878, 3.1.1.1.2) with room for
# `zstd --ultra`, in bytes.
MAX_WINDOW = 128 * MIB


class DamagedError(ValueError):
    """A compressed file that does not unpack."""


def is_compressed(head: bytes) -> bool:
    """Whether a file that begins with `head` is packed in a way that is read here."""
    return _opener(head) is not None


def pieces(head: bytes, file: IO[bytes]) -> Iterator[bytes]:
    """Yield the plain bytes of `file`, which begins with `head`, 1 MiB at most at a time.

    All members or frames of it. What is not compressed comes as it is. Raises DamagedError, and
    OSError as `file` does.
    """
    opener = _opener(head)
    with opener(file) if opener is not None else file as plain:
        while True:
            try:
                data = plain.read(_PIECE)
            except OSError as fault:
                # bzip2's and gzip's of damage have no number.
                if fault.errno is not None:
                    raise
                raise DamagedError(str(fault)) from fault
            except Exception as fault:
                if not isinstance(fault, _faults(head)):
                    raise
                raise DamagedError(str(fault)) from fault
            if not data:
                return
            yield data


def _opener(head: bytes) -> Callable[[IO[bytes]], Any] | None:
    return next((opener for magic, opener in _OPENERS if head.startswith(magic)), None)


def _faults(head: bytes) -> tuple[type[Exception], ...]:
    if head.startswith(ZSTD):
        import zstandard

        return EOFError, zstandard.ZstdError
    import lzma
    import zlib

    return EOFError, zlib.error, lzma.LZMAError


def _gzip(file: IO[bytes]) -> Any:
    import gzip

    return gzip.GzipFile(fileobj=file, mode="rb")


def _bzip2(file: IO[bytes]) -> Any:
    import bz2

    return bz2.BZ2File(file)


def _xz(file: IO[bytes]) -> Any:
    import lzma

    return lzma.LZMAFile(file)


def _zstd(file: IO[bytes]) -> Any:
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    return unpacker.stream_reader(file, read_across_frames=True)


_OPENERS: tuple[tuple[bytes, Callable[[IO[bytes]], Any]], ...] = (
    (GZIP, _gzip),
    (_BZIP2, _bzip2),
    (_XZ, _xz),
    (ZSTD, _zstd),
)
