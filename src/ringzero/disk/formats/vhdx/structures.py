"""The fixed structures of VHDX: headers, region table, metadata ([MS-VHDX] 2.2 and 2.6)."""

from __future__ import annotations

import struct
import uuid
from itertools import pairwise
from uuid import UUID

from ringzero.disk.crc32c import crc32c
from ringzero.disk.storage import Storage
from ringzero.errors import DiskFormatError, DiskUnsupportedError
from ringzero.records import field, mutable_record, record
from ringzero.units import KIB, MIB, TIB

SIGNATURE = b"vhdxfile"
HEADER_OFFSETS = (64 * KIB, 128 * KIB)
REGION_OFFSETS = (192 * KIB, 256 * KIB)
HEADER_SIZE = 4 * KIB
REGION_SIZE = 64 * KIB
# Regions, blocks and the log begin at multiples of this.
ALIGNMENT = MIB
MIN_BLOCK, MAX_BLOCK = MIB, 256 * MIB
MAX_SIZE = 64 * TIB

# 2.2.2: signature, checksum, sequence number, three GUIDs, log version,
# version, log length, log offset.
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_REGION_HEADER = struct.Struct("<4sIII")
_REGION = struct.Struct("<16sQII")
_REGION_LIMIT = 2047

BAT = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")

# 2.6.1: signature, reserved, entries; then item, offset, length, flags.
_TABLE_HEADER = struct.Struct("<8sHH20x")
_TABLE_ENTRY = struct.Struct("<16sIII4x")
_TABLE_LIMIT = 2047
_TABLE_SIZE = 64 * KIB
_ITEM_LIMIT = MIB
_IS_VIRTUAL_DISK, _IS_REQUIRED = 2, 4

FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
VIRTUAL_DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
VIRTUAL_DISK_ID = UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR = UUID("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_KNOWN = {
    FILE_PARAMETERS,
    VIRTUAL_DISK_SIZE,
    VIRTUAL_DISK_ID,
    LOGICAL_SECTOR,
    PHYSICAL_SECTOR,
    PARENT_LOCATOR,
}

_LEAVE_ALLOCATED, _HAS_PARENT = 1, 2
_VHDX_LOCATOR = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913")
_LOCATOR_LIMIT = 64

NIL = UUID(int=0)


@mutable_record
class Header:
    """The current one of the two headers (2.2.2)."""

    sequence: int
    file_write: UUID
    data_write: UUID
    log_guid: UUID
    log_length: int
    log_offset: int

    @classmethod
    def read(cls, storage: Storage) -> Header:
        """Return the valid header with the greater sequence number; DiskFormatError."""
        found = [cls._parse(storage.read(at, HEADER_SIZE)) for at in HEADER_OFFSETS]
        valid = [header for header in found if header is not None]
        if not valid:
            raise DiskFormatError(
                f"{storage.name}: neither VHDX header is valid", path=storage.name
            )
        header = max(valid, key=lambda header: header.sequence)
        if header.log_length % ALIGNMENT or header.log_offset % ALIGNMENT:
            raise DiskFormatError(f"{storage.name}: the log is not aligned", path=storage.name)
        return header

    @classmethod
    def _parse(cls, data: bytes) -> Header | None:
        (signature, checksum, sequence, file_write, data_write, log, log_version, version,
         length, offset) = _HEADER.unpack_from(data)  # fmt: skip
        if signature != b"head" or crc32c(data[:4] + bytes(4) + data[8:]) != checksum:
            return None
        if version != 1:
            raise DiskUnsupportedError(f"VHDX version {version} is not known")
        if log_version and UUID(bytes_le=log) != NIL:
            raise DiskUnsupportedError(f"VHDX log version {log_version} is not known")
        guids = [UUID(bytes_le=guid) for guid in (file_write, data_write, log)]
        return cls(sequence, guids[0], guids[1], guids[2], length, offset)

    def to_bytes(self) -> bytes:
        guids = (guid.bytes_le for guid in (self.file_write, self.data_write, self.log_guid))
        fields = (self.sequence, *guids, 0, 1, self.log_length, self.log_offset)
        data = _HEADER.pack(b"head", 0, *fields).ljust(HEADER_SIZE, b"\0")
        return _HEADER.pack(b"head", crc32c(data), *fields).ljust(HEADER_SIZE, b"\0")

    def write(self, storage: Storage) -> None:
        """Write over the older header, durably (2.2.2.1)."""
        self.sequence += 1
        storage.write(HEADER_OFFSETS[self.sequence & 1], self.to_bytes())
        storage.flush()


@record
class Region:
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def read_regions(storage: Storage) -> dict[UUID, Region]:
    """Return the regions of the first valid region table (2.2.3)."""
    for at in REGION_OFFSETS:
        data = storage.read(at, REGION_SIZE)
        signature, checksum, count, _ = _REGION_HEADER.unpack_from(data)
        if signature == b"regi" and crc32c(data[:4] + bytes(4) + data[8:]) == checksum:
            break
    else:
        raise DiskFormatError(f"{storage.name}: neither region table is valid", path=storage.name)
    if count > _REGION_LIMIT:
        raise DiskFormatError(f"{storage.name}: {count} regions", path=storage.name)
    regions: dict[UUID, Region] = {}
    for number in range(count):
        raw, offset, length, required = _REGION.unpack_from(
            data, _REGION_HEADER.size + number * _REGION.size
        )
        guid = UUID(bytes_le=raw)
        if guid not in (BAT, METADATA):
            if required & 1:
                raise DiskUnsupportedError(
                    f"{storage.name} needs the region {guid}, which is not known",
                    path=storage.name,
                )
            # Nothing of ours may come to lie there.
            if offset + length <= storage.size:
                regions[guid] = Region(offset, length)
            continue
        if guid in regions:
            raise DiskFormatError(f"{storage.name}: two regions {guid}", path=storage.name)
        if offset < ALIGNMENT or offset % ALIGNMENT or offset + length > storage.size:
            raise DiskFormatError(
                f"{storage.name}: the region {guid} is misaligned or outside the file",
                path=storage.name,
                offset=offset,
            )
        regions[guid] = Region(offset, length)
    if not {BAT, METADATA} <= regions.keys():
        raise DiskFormatError(f"{storage.name}: a region is missing", path=storage.name)
    row = sorted(regions.values(), key=lambda region: region.offset)
    if any(first.end > second.offset for first, second in pairwise(row)):
        raise DiskFormatError(f"{storage.name}: its regions overlap", path=storage.name)
    return regions


def region_table(bat: Region, metadata: Region) -> bytes:
    """Return a region table."""
    entries = b"".join(
        _REGION.pack(guid.bytes_le, region.offset, region.length, 1)
        for guid, region in ((BAT, bat), (METADATA, metadata))
    )
    data = (_REGION_HEADER.pack(b"regi", 0, 2, 0) + entries).ljust(REGION_SIZE, b"\0")
    return data[:4] + struct.pack("<I", crc32c(data)) + data[8:]


@mutable_record
class Metadata:
    """The items of the metadata region (2.6.2)."""

    block_size: int
    size: int
    disk_id: UUID = field(default_factory=uuid.uuid4)
    logical_sector: int = 512
    physical_sector: int = 4096
    leave_allocated: bool = False
    has_parent: bool = False
    locator: dict[str, str] = field(default_factory=dict)
    # Where in the file the virtual disk size is, to change it in place.
    size_offset: int = 0
    locator_offset: int = 0

    @classmethod
    def read(cls, storage: Storage, region: Region) -> Metadata:
        """Read and check all items; DiskFormatError, DiskUnsupportedError."""
        name = storage.name
        head = storage.read(region.offset, _TABLE_SIZE)
        signature, _, count = _TABLE_HEADER.unpack_from(head)
        if signature != b"metadata" or count > _TABLE_LIMIT:
            raise DiskFormatError(f"{name}: the metadata table is invalid", path=name)
        places: dict[UUID, tuple[int, int]] = {}
        for number in range(count):
            raw, offset, length, flags = _TABLE_ENTRY.unpack_from(
                head, _TABLE_HEADER.size + number * _TABLE_ENTRY.size
            )
            item = UUID(bytes_le=raw)
            if item not in _KNOWN:
                if flags & _IS_REQUIRED:
                    raise DiskUnsupportedError(
                        f"{name} needs the metadata item {item}, which is not known", path=name
                    )
                continue
            bad = length and (offset < _TABLE_SIZE or offset + length > region.length)
            if item in places or length > _ITEM_LIMIT or bad:
                raise DiskFormatError(f"{name}: the metadata item {item} is invalid", path=name)
            places[item] = region.offset + offset, length

        def fetch(item: UUID, length: int) -> bytes:
            if item not in places or places[item][1] < length:
                raise DiskFormatError(f"{name}: the metadata item {item} is missing", path=name)
            return storage.read(places[item][0], length)

        block_size, flags = struct.unpack("<II", fetch(FILE_PARAMETERS, 8))
        found = cls(
            block_size=block_size,
            size=struct.unpack("<Q", fetch(VIRTUAL_DISK_SIZE, 8))[0],
            disk_id=UUID(bytes_le=fetch(VIRTUAL_DISK_ID, 16)),
            logical_sector=struct.unpack("<I", fetch(LOGICAL_SECTOR, 4))[0],
            physical_sector=struct.unpack("<I", fetch(PHYSICAL_SECTOR, 4))[0],
            leave_allocated=bool(flags & _LEAVE_ALLOCATED),
            has_parent=bool(flags & _HAS_PARENT),
            size_offset=places[VIRTUAL_DISK_SIZE][0],
        )
        found._check(name)
        if found.has_parent:
            length = places.get(PARENT_LOCATOR, (0, 0))[1]
            found.locator_offset = places.get(PARENT_LOCATOR, (0, 0))[0]
            found.locator = _parse_locator(fetch(PARENT_LOCATOR, max(20, length)), name)
        return found

    def _check(self, name: str) -> None:
        size = self.block_size
        wrong = None
        if not MIN_BLOCK <= size <= MAX_BLOCK or size & (size - 1):
            wrong = f"a block size of {size}"
        elif self.logical_sector not in (512, 4096):
            wrong = f"logical sectors of {self.logical_sector} bytes"
        elif self.physical_sector not in (512, 4096):
            wrong = f"physical sectors of {self.physical_sector} bytes"
        elif self.size > MAX_SIZE or self.size % self.logical_sector:
            wrong = f"a disk of {self.size} bytes"
        if wrong:
            raise DiskFormatError(f"{name}: VHDX does not allow {wrong}", path=name)

    @property
    def chunk_ratio(self) -> int:
        """How many payload blocks share one sector bitmap block (2.5)."""
        return (1 << 23) * self.logical_sector // self.block_size

    def bat_entries(self, size: int | None = None) -> int:
        """Return the number of entries in the BAT of a disk of `size` bytes (2.5.1)."""
        blocks = -(-(self.size if size is None else size) // self.block_size)
        if self.has_parent:
            return -(-blocks // self.chunk_ratio) * (self.chunk_ratio + 1)
        return blocks + max(0, blocks - 1) // self.chunk_ratio

    def to_bytes(self) -> bytes:
        """Return a metadata region of 1 MiB."""
        flags = self.leave_allocated * _LEAVE_ALLOCATED | self.has_parent * _HAS_PARENT
        of_disk = _IS_REQUIRED | _IS_VIRTUAL_DISK
        items = [
            (FILE_PARAMETERS, struct.pack("<II", self.block_size, flags), _IS_REQUIRED),
            (VIRTUAL_DISK_SIZE, struct.pack("<Q", self.size), of_disk),
            (VIRTUAL_DISK_ID, self.disk_id.bytes_le, of_disk),
            (LOGICAL_SECTOR, struct.pack("<I", self.logical_sector), of_disk),
            (PHYSICAL_SECTOR, struct.pack("<I", self.physical_sector), of_disk),
        ]
        if self.has_parent:
            # The last item, so that a longer one can take its place.
            items.append((PARENT_LOCATOR, locator_to_bytes(self.locator), _IS_REQUIRED))
        table = _TABLE_HEADER.pack(b"metadata", 0, len(items))
        body = b""
        for item, data, item_flags in items:
            offset = _TABLE_SIZE + len(body)
            table += _TABLE_ENTRY.pack(item.bytes_le, offset, len(data), item_flags)
            body += data
        return (table.ljust(_TABLE_SIZE, b"\0") + body).ljust(MIB, b"\0")


def _parse_locator(data: bytes, name: str) -> dict[str, str]:
    """Read a parent locator (2.6.2.6)."""
    if UUID(bytes_le=data[:16]) != _VHDX_LOCATOR:
        raise DiskUnsupportedError(f"{name}: its parent is no VHDX image", path=name)
    (count,) = struct.unpack_from("<H", data, 18)
    if count > _LOCATOR_LIMIT or 20 + 12 * count > len(data):
        raise DiskFormatError(f"{name}: the parent locator is invalid", path=name)
    found = {}
    for number in range(count):
        key_at, value_at, key_length, value_length = struct.unpack_from(
            "<IIHH", data, 20 + 12 * number
        )
        key, value = data[key_at : key_at + key_length], data[value_at : value_at + value_length]
        if len(key) != key_length or len(value) != value_length:
            raise DiskFormatError(f"{name}: the parent locator is invalid", path=name)
        text = value[: len(value) // 2 * 2].decode("utf-16-le", "surrogatepass")
        # Some writers count a NUL at the end.
        found[key.decode("utf-16-le", "replace")] = text.split("\0", 1)[0]
    return found


def locator_to_bytes(entries: dict[str, str]) -> bytes:
    """Return a parent locator."""
    table = _VHDX_LOCATOR.bytes_le + struct.pack("<HH", 0, len(entries))
    body = b""
    start = 20 + 12 * len(entries)
    for key, value in entries.items():
        raw_key = key.encode("utf-16-le")
        # Bytes of a file's name that are no text are lone surrogates.
        raw_value = value.encode("utf-16-le", "surrogatepass")
        at = start + len(body)
        table += struct.pack("<IIHH", at, at + len(raw_key), len(raw_key), len(raw_value))
        body += raw_key + raw_value
    return table + body
