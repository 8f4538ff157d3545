"""Packing clusters, and where they go in the file (qcow2, "Compressed Clusters")."""

from __future__ import annotations

import zlib

from ringzero.disk.contract import SECTOR, Compression
from ringzero.disk.formats.qcow2.image import Qcow2Image
from ringzero.disk.formats.qcow2.mapping import COMPRESSED
from ringzero.disk.vectors import Buffer, flat
from ringzero.errors import DiskUnsupportedError, InvalidValueError

# "raw deflate with a 4 KiB window".
_WBITS = -12


class Qcow2Compression(Compression):
    """Appends compressed clusters back to back; several may share a host cluster."""

    def __init__(self, disk: Qcow2Image) -> None:
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
            packer = zlib.compressobj(-1, zlib.DEFLATED, _WBITS, 9)
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
        disk.touch(offset, min(self.unit, disk.size - offset))
        with disk._alloc:
            disk.make_room()
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
