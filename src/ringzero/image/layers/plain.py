"""Layers without their compression, in pieces.

A layer is a hostile file: what it unpacks to is bounded by the caller, and by the room on the
disk, however small it came.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol, cast

from ringzero.errors import GuestImageError, HostError
from ringzero.host.files import free_space
from ringzero.image.compression import GZIP, MAX_WINDOW, ZSTD
from ringzero.units import MIB, format_size

# Bytes at a time: they stay in the CPU's cache until they are hashed and written, and their memory
# is used again, where larger pieces come fresh from the kernel each time.
_CHUNK = 1 << 18
# Packed bytes at a time: what of them does not fit into a piece is copied for the next one.
_PACKED = 1 << 17
# A gzip header, a window of any size (2**15 bytes), and a checksum behind (zlib's MAX_WBITS).
_GZIP_WINDOW = 16 + 15
# What is left free on the disk, in bytes, and how often it is looked at.
_SPARE, _LOOK = 64 * MIB, 64 * MIB


class Budget:
    """How much all layers of one image may unpack to, below `place` on the disk: bytes, files."""

    def __init__(self, limit: int, files: int, place: Path) -> None:
        self._limit, self._left, self._place = limit, limit, place
        self._files, self._files_left = files, files
        self._until_look = 0

    def stop(self) -> None:
        """Let every further `spend` raise."""
        self._left = -1

    def spend(self, count: int) -> None:
        """Take `count` bytes; by any thread.

        Raises GuestImageError, HostError when the disk is nearly full.
        """
        self._left -= count
        if self._left < 0:
            raise GuestImageError(
                f"the image unpacks to more than {format_size(self._limit)}",
                hint="RINGZERO_IMAGE_LIMIT=SIZE allows more, if you trust it",
            )
        self._until_look -= count
        if self._until_look < 0:
            self._until_look = _LOOK
            if free_space(self._place) < _SPARE:
                raise HostError(
                    "the disk is full: the image does not fit",
                    hint="`ringzero image prune`, or RINGZERO_CACHE_DIR on another disk",
                    path=self._place,
                )

    def spend_file(self) -> None:
        """Take a file; by any thread. Raises GuestImageError."""
        self._files_left -= 1
        if self._files_left < 0:
            raise GuestImageError(f"the image has more than {self._files} files")


class Readable(Protocol):
    """What bytes come from, in their order."""

    def read(self, size: int, /) -> bytes:
        """Return at least one byte and at most `size`; none at the end."""
        ...


def kind_of(head: bytes) -> str:
    """Return how a file is compressed that begins with `head`: "gzip", "zstd" or "tar"."""
    if head.startswith(GZIP):
        return "gzip"
    return "zstd" if head.startswith(ZSTD) else "tar"


class Headed:
    """A file whose beginning, `head`, is looked at before it is read."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self.head = b""
        while len(self.head) < len(ZSTD) and (data := file.read(_CHUNK)):
            self.head += data
        self._rest = self.head

    def read(self, size: int) -> bytes:
        """Return at least one byte and at most `size`; none at the end."""
        if self._rest:
            data, self._rest = self._rest[:size], self._rest[size:]
            return data
        return self._file.read(size)


def pieces(file: Headed, spend: Callable[[int], object] = lambda _: None) -> Iterator[bytes]:
    """Yield a layer's plain tar in pieces of at most 256 KiB, whose sizes `spend` hears before.

    By its content, not by its type: builders have been wrong about it. Raises GuestImageError
    for a damaged one, and what `spend` and `file` do.
    """
    readers = {"gzip": _gzip, "zstd": _zstd, "tar": _chunks}
    for data in readers[kind_of(file.head)](file):
        spend(len(data))
        yield data


def _chunks(file: Headed) -> Iterator[bytes]:
    while data := file.read(_CHUNK):
        yield data


def _gzip(file: Headed) -> Iterator[bytes]:
    """Yield the content of all members, as gzip(1) does; what is no member behind them is cut."""
    zlib = _zlib()
    whole = False
    rest = b""
    while rest or (rest := file.read(_PACKED)):
        if whole and not rest.startswith(GZIP[: len(rest)]):
            return
        stream = zlib.decompressobj(_GZIP_WINDOW)
        while not stream.eof:
            if not rest and not (rest := file.read(_PACKED)):
                raise _damaged("it is cut short")
            try:
                # No more at a time than this, however much it grows.
                data = stream.decompress(rest, _CHUNK)
            except zlib.error as fault:
                raise _damaged(fault) from fault
            yield data
            rest = stream.unconsumed_tail
        rest = stream.unused_data
        whole = True


def _zlib() -> Any:
    """Return the fastest module that is like zlib: ISA-L's takes half the time, or a third."""
    try:
        from isal import isal_zlib
    except ImportError:
        import zlib

        return zlib
    return isal_zlib


def _zstd(file: Headed) -> Iterator[bytes]:
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    try:
        with unpacker.stream_reader(
            cast(IO[bytes], file), read_size=_CHUNK, read_across_frames=True, closefd=False
        ) as stream:
            while data := stream.read(_CHUNK):
                yield data
    except zstandard.ZstdError as fault:
        raise _damaged(fault) from fault


def _damaged(reason: object) -> GuestImageError:
    return GuestImageError(f"a layer of the image is damaged: {reason}")


def map_whole(descriptor: int) -> memoryview:
    """Return a file's content without reading it; raises OSError."""
    import mmap

    if not os.fstat(descriptor).st_size:
        return memoryview(b"")
    return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
