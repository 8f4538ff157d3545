"""Layers without their compression: into a file, checked while they stream.

A layer is a hostile file: what it unpacks to is bounded by the caller, and by the room on the
disk, however small it came.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast

from ringzero.errors import GuestImageError, HostError
from ringzero.host.files import free_space
from ringzero.units import MIB, format_size

# Bytes at a time: they stay in the CPU's cache until they are hashed and written, and their memory
# is used again, where larger pieces come fresh from the kernel each time.
_CHUNK = 1 << 18
# A gzip header, and any checksum behind it.
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# zstd's window, by the specification's recommendation (RFC 8878, 3.1.1.1.2) with room for
# `zstd --ultra`, in bytes.
_MAX_WINDOW = 128 * MIB
# What is left free on the disk, in bytes, and how often it is looked at.
_SPARE, _LOOK = 64 * MIB, 64 * MIB


class Budget:
    """How many bytes all layers of one image may unpack to, below `place` on the disk."""

    def __init__(self, limit: int, place: Path) -> None:
        self._limit, self._left, self._place = limit, limit, place
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


class Readable(Protocol):
    """What bytes come from, in their order."""

    def read(self, size: int, /) -> bytes:
        """Return at least one byte and at most `size`; none at the end."""
        ...


def kind_of(head: bytes) -> str:
    """Return how a file is compressed that begins with `head`: "gzip", "zstd" or "tar"."""
    if head.startswith(_GZIP):
        return "gzip"
    return "zstd" if head.startswith(_ZSTD) else "tar"


class Headed:
    """A file whose beginning, `head`, is looked at before it is read."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self.head = b""
        while len(self.head) < len(_ZSTD) and (data := file.read(_CHUNK)):
            self.head += data
        self._rest = self.head

    def read(self, size: int) -> bytes:
        """Return at least one byte and at most `size`; none at the end."""
        if self._rest:
            data, self._rest = self._rest[:size], self._rest[size:]
            return data
        return self._file.read(size)


def unpack(file: Headed, target: BinaryIO, budget: Budget) -> str:
    """Write a layer's plain tar to `target`; return its digest.

    By its content, not by its type: builders have been wrong about it. Raises GuestImageError
    for a damaged one, OSError, and what `budget` and `file` do.
    """
    digest = hashlib.sha256()
    readers = {"gzip": _gzip, "zstd": _zstd, "tar": _chunks}
    try:
        for data in readers[kind_of(file.head)](file):
            budget.spend(len(data))
            digest.update(data)
            target.write(data)
    except (zlib.error, EOFError) as fault:
        raise GuestImageError(f"a layer of the image is damaged: {fault}") from fault
    target.flush()
    return f"sha256:{digest.hexdigest()}"


def _chunks(file: Headed) -> Iterator[bytes]:
    while data := file.read(_CHUNK):
        yield data


def _gzip(file: Headed) -> Iterator[bytes]:
    """Yield the content of all members, as gzip(1) does; what is no member behind them is cut."""
    whole = False
    rest = b""
    while rest or (rest := file.read(_CHUNK)):
        if whole and not rest.startswith(_GZIP[: len(rest)]):
            return
        stream = zlib.decompressobj(_GZIP_WINDOW)
        while not stream.eof:
            if not rest and not (rest := file.read(_CHUNK)):
                raise EOFError("it is cut short")
            # No more at a time than this, however much it grows.
            yield stream.decompress(rest, _CHUNK)
            rest = stream.unconsumed_tail
        rest = stream.unused_data
        whole = True


def _zstd(file: Headed) -> Iterator[bytes]:
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    try:
        with unpacker.stream_reader(
            cast(IO[bytes], file), read_size=_CHUNK, read_across_frames=True, closefd=False
        ) as stream:
            while data := stream.read(_CHUNK):
                yield data
    except zstandard.ZstdError as fault:
        raise GuestImageError(f"a layer of the image is damaged: {fault}") from fault


def map_whole(descriptor: int) -> memoryview:
    """Return a file's content without reading it; raises OSError."""
    import mmap

    if not os.fstat(descriptor).st_size:
        return memoryview(b"")
    return memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
