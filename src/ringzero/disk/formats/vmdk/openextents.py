"""Opening the extents that a VMDK descriptor lists."""

from __future__ import annotations

from ringzero.disk.contract import SECTOR, Surroundings
from ringzero.disk.filenames import host_paths
from ringzero.disk.formats.vmdk.descriptor import Descriptor, ExtentLine
from ringzero.disk.formats.vmdk.extents import FlatExtent, SparseExtent, ZeroExtent
from ringzero.disk.formats.vmdk.header import Header
from ringzero.disk.storage import Storage
from ringzero.errors import DiskFormatError, DiskUnsupportedError, NotFoundError


class ExtentOpener:
    """Opens the extents of one image, of which `storage` holds the descriptor.

    `header` is the sparse header in front of the descriptor, None when the file is all text;
    `free_from` is the byte in `storage` from which on extents may lie in it.
    """

    def __init__(
        self,
        storage: Storage,
        header: Header | None,
        free_from: int,
        descriptor: Descriptor,
        around: Surroundings,
    ) -> None:
        self._storage = storage
        self._header = header
        self._free_from = free_from
        self._descriptor = descriptor
        self._around = around
        # Several extents may be parts of one file.
        self._opened: dict[str, Storage] = {}

    def open(self, line: ExtentLine) -> FlatExtent | ZeroExtent | SparseExtent:
        """Return the extent of a line; DiskFormatError, DiskUnsupportedError, NotFoundError."""
        around = self._around
        if line.kind == "ZERO":
            return ZeroExtent(line.sectors * SECTOR)
        if line.access == "NOACCESS" or line.kind not in ("SPARSE", "FLAT", "VMFS"):
            raise DiskUnsupportedError(f"{around.path}: VMDK extents {line.access} {line.kind}")
        read_only = around.read_only or line.access == "RDONLY"
        storage, fresh = self._file_of(line)
        try:
            if line.kind == "SPARSE":
                own = self._header if storage is self._storage else None
                return _sparse(storage, own or Header.read(storage), line, read_only)
            start = line.offset * SECTOR
            if storage is self._storage and start < self._free_from:
                raise DiskFormatError(
                    f"{storage.name}: an extent lies over the descriptor", path=storage.name
                )
            return FlatExtent(storage, start, line.sectors * SECTOR, read_only=read_only)
        except BaseException:
            if fresh:
                storage.close()
            raise

    def _file_of(self, line: ExtentLine) -> tuple[Storage, bool]:
        """Return the file of an extent, and whether it has been opened for it."""
        alone = len(self._descriptor.extents) == 1
        # A sparse image may be renamed: its only extent is the file that it is in.
        if alone and line.kind == "SPARSE" and self._header is not None:
            return self._storage, False
        if self._around.is_own(line.filename):
            return self._storage, False
        known = self._opened.get(line.filename)
        if known is not None:
            return known, False
        names = host_paths(self._descriptor.spellings(line.filename), beside=False)
        try:
            storage = self._around.open_storage(*names)
        except NotFoundError:
            if alone and self._fits(line):
                return self._storage, False
            raise
        self._opened[line.filename] = storage
        return storage, True

    def _fits(self, line: ExtentLine) -> bool:
        """Whether a flat extent of a file that is not there may be in this one, renamed."""
        start = line.offset * SECTOR
        end = start + line.sectors * SECTOR
        return (
            self._header is not None
            and not self._header.capacity
            and self._free_from <= start
            and end <= self._storage.size
        )


def _sparse(storage: Storage, header: Header, line: ExtentLine, read_only: bool) -> SparseExtent:
    if not header.has_grains or line.sectors * SECTOR > header.capacity:
        raise DiskFormatError(
            f"{storage.name} is shorter than the descriptor says", path=storage.name
        )
    part = SparseExtent(storage, header, read_only=read_only)
    part.limit(line.sectors * SECTOR)
    return part
