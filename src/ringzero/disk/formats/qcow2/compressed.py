"""Compressed clusters: finding, unpacking within bounds, packing ("Compressed Clusters")."""

from __future__ import annotations

import threading
import zlib
from typing import TYPE_CHECKING

from ringzero.disk.contract import SECTOR, Compression
from ringzero.disk.formats.qcow2.mapping import COMPRESSED
from ringzero.disk.storage import Storage
from ringzero.disk.vectors import Buffer, flat
from ringzero.errors import DiskFormatError, DiskUnsupportedError, InvalidValueError

if TYPE_CHECKING:
    from ringzero.disk.formats.qcow2.disk import Qcow2Disk

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


class Qcow2Compression(Compression):
    """Appends compressed clusters back to back; several may share a host cluster."""

    def __init__(self, disk: Qcow2Disk) -> None:
        self.disk = disk
        self.unit = disk.cluster_size
        self.method = disk.header.compression
        # Where the next one goes, in the cluster `refcounts.open_cluster` if there is one.
        self._at = 0

    def pack(self, data: Buffer) -> bytes | None:
        view = flat(data)
        if len(view) < self.unit:
            view = memoryview(bytes(view).ljust(self.unit, b"\0"))
        if self.method == "zstd":
            import zstandard

            packed = zstandard.ZstdCompressor().compress(view)
        else:
            packer = zlib.compressobj(-1, zlib.DEFLATED, _WBITS_WRITE, 9)
            packed = packer.compress(view) + packer.flush()
        return packed if len(packed) < self.unit else None

    def store(self, offset: int, packed: bytes) -> None:
        disk = self.disk
        if offset % self.unit or not 0 <= offset < disk.size or len(packed) >= self.unit:
            raise InvalidValueError("a compressed cluster must fill one cluster", offset=offset)
        if disk.read_only:
            raise disk._read_only_error()
        if disk.map.external:
            raise DiskUnsupportedError("an image with an external data file is never compressed")
        disk._touch(offset, min(self.unit, disk.size - offset))
        with disk._alloc:
            disk._make_room()
            at = self._place(len(packed))
            disk.storage.write(at, packed)
            split = 62 - (disk.header.cluster_bits - 8)
            sectors = (at + len(packed) - 1) // SECTOR - at // SECTOR
            disk.link_entry(
                offset >> disk.header.cluster_bits, COMPRESSED | sectors << split | at, 0
            )

    def _place(self, length: int) -> int:
        """Return where `length` bytes go, their clusters counted."""
        refcounts, bits = self.disk.refcounts, self.disk.header.cluster_bits
        at = self._at
        opened = refcounts.open_cluster
        # What is shared counts once for each that shares it; narrow counts cannot.
        if opened is not None and refcounts.get(opened) >= refcounts.maximum:
            opened = None
        if opened is not None and at + length <= opened + 1 << bits:
            refcounts.add(opened, 1)
        else:
            cluster, _ = refcounts.allocate(1)
            if opened is not None and cluster == opened + 1:
                refcounts.add(opened, 1)
            else:
                at = cluster << bits
            refcounts.open_cluster = cluster
        self._at = at + length
        # A full cluster has no room to share.
        if self._at == (refcounts.open_cluster or 0) + 1 << bits:
            refcounts.open_cluster = None
        return at
