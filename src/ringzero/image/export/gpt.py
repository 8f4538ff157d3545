"""Writing a GUID partition table (UEFI 2.10, chapter 5); no I/O."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from uuid import UUID

from ringzero.records import record

SECTOR = 512
ENTRIES, ENTRY_SIZE = 128, 128
# The table takes so many sectors at both ends of the disk, and one more for its header.
TABLE_SECTORS = ENTRIES * ENTRY_SIZE // SECTOR
FIRST = 2 + TABLE_SECTORS
_REVISION, _HEADER_SIZE = 0x10000, 92
_PROTECTIVE = 0xEE

BIOS_BOOT = UUID("21686148-6449-6e6f-744e-656564454649")
EFI_SYSTEM = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
# Discoverable Partitions Specification (UAPI.2): a root file system for x86-64.
ROOT_X86_64 = UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")


@record
class NewPartition:
    """A partition: its type, its own UUID, its first sector, how many sectors, and its name."""

    type: UUID
    uuid: UUID
    start: int
    sectors: int
    name: str


def tables(
    partitions: Sequence[NewPartition], sectors: int, disk: UUID, boot: bytes = b""
) -> tuple[bytes, bytes]:
    """Return the first FIRST sectors of a disk of so many sectors, and its last ones.

    `boot` is code for the first sector, 440 bytes at most.
    """
    data = b"".join(_entry(partition) for partition in partitions)
    data = data.ljust(ENTRIES * ENTRY_SIZE, b"\0")
    backup = sectors - 1
    mbr = boot.ljust(440, b"\0") + bytes(6)
    # Of the whole disk, for programs that know nothing of this table.
    mbr += struct.pack(
        "<B3sB3sII",
        *(0, b"\0\x02\0", _PROTECTIVE, b"\xff\xff\xff", 1, min(backup, 0xFFFFFFFF)),
    )
    mbr = mbr.ljust(510, b"\0") + b"\x55\xaa"
    head = mbr + _header(1, backup, 2, sectors, disk, data) + data
    tail = data + _header(backup, 1, backup - TABLE_SECTORS, sectors, disk, data)
    return head, tail


def _entry(partition: NewPartition) -> bytes:
    return struct.pack(
        "<16s16sQQQ72s",
        *(partition.type.bytes_le, partition.uuid.bytes_le, partition.start),
        *(partition.start + partition.sectors - 1, 0, partition.name.encode("utf-16-le")),
    )


def _header(own: int, other: int, table: int, sectors: int, disk: UUID, data: bytes) -> bytes:
    last = sectors - FIRST

    def packed(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            *(b"EFI PART", _REVISION, _HEADER_SIZE, checksum, 0, own, other, FIRST, last),
            *(disk.bytes_le, table, ENTRIES, ENTRY_SIZE, zlib.crc32(data)),
        )

    return packed(zlib.crc32(packed(0))).ljust(SECTOR, b"\0")
