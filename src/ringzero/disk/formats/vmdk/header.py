"""The header of a sparse extent ("Hosted Sparse Extent Header", "Stream-Optimized")."""

from __future__ import annotations

import struct

from ringzero.disk.contract import SECTOR
from ringzero.disk.storage import Storage
from ringzero.errors import DiskFormatError, DiskUnsupportedError
from ringzero.records import mutable_record

MAGIC = b"KDMV"
# magic, version, flags, capacity, grain, descriptor offset and size, entries
# of a grain table, redundant and first grain directory, overhead, unclean,
# four characters that a transfer as text would damage, compression.
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_LINE_ENDS = b"\n \r\n"

LINE_ENDS_VALID, REDUNDANT, ZERO_GRAINS = 1, 2, 4
COMPRESSED, MARKERS = 1 << 16, 1 << 17
_KNOWN_FLAGS = LINE_ENDS_VALID | REDUNDANT | ZERO_GRAINS | COMPRESSED | MARKERS
_DEFLATE = 1

# The grain directory is where the footer says.
AT_END = (1 << 64) - 1

# The specification's grain is 64 KiB; larger than 64 MiB is of no use to anybody.
MAX_GRAIN = 64 << 20

# Kinds of metadata markers.
MARK_END, MARK_TABLE, MARK_DIRECTORY, MARK_FOOTER = 0, 1, 2, 3


@mutable_record
class Header:
    """A header; offsets and sizes in sectors of 512 bytes, but `capacity` and `grain` in bytes.

    Without capacity it does nothing but lead to a descriptor, and `grain` may be anything.
    """

    capacity: int
    grain: int = 128 * SECTOR
    version: int = 1
    flags: int = LINE_ENDS_VALID | REDUNDANT
    descriptor_offset: int = 0
    descriptor_size: int = 0
    per_table: int = 512
    redundant: int = 0
    directory: int = 0
    overhead: int = 0

    @classmethod
    def read(cls, storage: Storage) -> Header:
        """Read the header, and the footer when that is the true one; DiskFormatError."""
        header = cls._parse(storage.read(0, SECTOR), storage.name)
        if header.directory == AT_END:
            # Footer marker, footer, end-of-stream marker.
            at = storage.size - 2 * SECTOR
            if at < SECTOR:
                raise DiskFormatError(f"{storage.name} has no footer", path=storage.name)
            header = cls._parse(storage.read(at, SECTOR), storage.name)
            if header.directory == AT_END:
                raise DiskFormatError(
                    f"{storage.name} is incomplete: its grain directory is missing",
                    path=storage.name,
                )
        return header

    @classmethod
    def _parse(cls, data: bytes, name: str) -> Header:
        (magic, version, flags, capacity, grain, descriptor, descriptor_size, per_table,
         redundant, directory, overhead, _, ends, method) = _HEADER.unpack_from(data)  # fmt: skip
        if magic != MAGIC:
            raise DiskFormatError(f"{name}: no VMDK header where one should be", path=name)
        wrong = None
        leads_on = not capacity and descriptor and descriptor_size
        if not 1 <= version <= 3:
            raise DiskUnsupportedError(f"{name}: VMDK version {version} is not known", path=name)
        if flags & ~_KNOWN_FLAGS & 0xFFFF_0000:
            raise DiskUnsupportedError(f"{name}: VMDK flags {flags:#x} are not known", path=name)
        if flags & LINE_ENDS_VALID and ends != _LINE_ENDS:
            wrong = "it was transferred as text and is damaged"
        elif capacity >= 1 << 54:
            wrong = f"a capacity of {capacity} sectors"
        elif not leads_on and (grain & (grain - 1) or not 1 <= grain * SECTOR <= MAX_GRAIN):
            wrong = f"a grain of {grain} sectors"
        elif not leads_on and not 1 <= per_table <= 512:
            wrong = f"grain tables of {per_table} entries"
        elif flags & COMPRESSED and method != _DEFLATE:
            wrong = f"compression {method}"
        if wrong:
            raise DiskFormatError(f"{name}: {wrong}", path=name)
        return cls(
            capacity * SECTOR, grain * SECTOR, version, flags, descriptor, descriptor_size,
            per_table, redundant, directory, overhead,
        )  # fmt: skip

    @property
    def compressed(self) -> bool:
        return bool(self.flags & COMPRESSED)

    @property
    def has_grains(self) -> bool:
        """Whether it describes a sparse extent, and does not only lead to a descriptor."""
        return self.capacity > 0 or (self.grain > 0 and self.per_table > 0)

    @property
    def tables(self) -> int:
        """The number of grain tables."""
        return -(-self.capacity // (self.per_table * self.grain))

    def to_bytes(self) -> bytes:
        return _HEADER.pack(
            MAGIC, self.version, self.flags, self.capacity // SECTOR, self.grain // SECTOR,
            self.descriptor_offset, self.descriptor_size, self.per_table, self.redundant,
            self.directory, self.overhead, 0, _LINE_ENDS, _DEFLATE if self.compressed else 0,
        ).ljust(SECTOR, b"\0")  # fmt: skip


def marker(sectors: int, kind: int) -> bytes:
    """Return a metadata marker: `sectors` of the given kind follow."""
    return struct.pack("<QII", sectors, 0, kind).ljust(SECTOR, b"\0")
