"""Compressed clusters: finding them, unpacking within bounds (qcow2, "Compressed Clusters")."""

from __future__ import annotations

import threading
import zlib

from ringzero.disk.contract import SECTOR
from ringzero.disk.formats.qcow2.mapping import COMPRESSED
from ringzero.disk.storage import Storage
from ringzero.errors import DiskFormatError

# "raw deflate with a 4 KiB window"; a larger window is read all the same.
_WBITS_WRITE, _WBITS_READ = -12, -15
# A window that no qcow2 writer has use for would only cost memory.
_ZSTD_MAX_WINDOW = 1 << 24
# Unpacked clusters kept for the small reads that follow one another.
_CACHE_CLUSTERS = 32
_CACHE_BYTES = 8 << 20


def place_of(entry: int, cluster_bits: int) -> tuple[int, int]:
    """Return (host offset, length) of the bytes that a compressed L2 entry names.

    The length is an upper bound, in whole sectors from the offset on.
    """
    split = 62 - (cluster_bits - 8)
    offset = entry & ((1 << split) - 1)
    sectors = (entry & (COMPRESSED - 1)) >> split
    return offset, (sectors + 1) * SECTOR - offset % SECTOR


def clusters_of(entry: int, cluster_bits: int) -> range:
    """Return the numbers of the host clusters that a compressed L2 entry touches."""
    offset, length = place_of(entry, cluster_bits)
    return range(offset >> cluster_bits, ((offset + length - 1) >> cluster_bits) + 1)


class Unpacker:
    """Reads compressed clusters and keeps the last few. Any thread."""

    def __init__(self, storage: Storage, method: str, cluster_bits: int) -> None:
        self.storage = storage
        self.method = method
        self.cluster_bits = cluster_bits
        self.limit = max(1, min(_CACHE_CLUSTERS, _CACHE_BYTES >> cluster_bits))
        self._cache: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def get(self, entry: int) -> bytes:
        """Return the cluster that the L2 entry `entry` names; DiskFormatError."""
        found = self._cache.get(entry)
        if found is not None:
            return found
        offset, length = place_of(entry, self.cluster_bits)
        if offset >= self.storage.size:
            raise self._broken(offset, "it is behind the end of the file")
        packed = self.storage.read(offset, length)
        unpack = _unpack_zstd if self.method == "zstd" else _unpack_zlib
        try:
            data = unpack(packed, 1 << self.cluster_bits)
        except ValueError as fault:
            raise self._broken(offset, str(fault)) from fault
        with self._lock:
            while len(self._cache) >= self.limit:
                self._cache.pop(next(iter(self._cache)))
            self._cache[entry] = data
        return data

    def forget(self) -> None:
        """Drop what is kept; the host clusters may soon hold something else."""
        with self._lock:
            self._cache.clear()

    def _broken(self, offset: int, why: str) -> DiskFormatError:
        return DiskFormatError(
            f"{self.storage.name}: the compressed cluster at {offset:#x} cannot be read: {why}",
            path=self.storage.name,
            offset=offset,
        )


def _unpack_zlib(packed: bytes, size: int) -> bytes:
    try:
        data = zlib.decompressobj(_WBITS_READ).decompress(packed, size)
    except zlib.error as fault:
        raise ValueError(str(fault)) from fault
    if len(data) != size:
        raise ValueError(f"it holds {len(data)} bytes, expected {size}")
    return data


def _unpack_zstd(packed: bytes, size: int) -> bytes:
    import zstandard

    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW).stream_reader(packed)
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    try:
        while done < size:
            got = reader.readinto(view[done:])
            if not got:
                raise ValueError(f"it holds {done} bytes, expected {size}")
            done += got
    except zstandard.ZstdError as fault:
        raise ValueError(str(fault)) from fault
    return bytes(data)
