"""Partition tables: MBR with extended partitions, and GPT (UEFI 2.10 chapter 5).

A disk without a table is one whole: `read_partitions` returns nothing for it.
"""

from __future__ import annotations

import struct
import uuid
import zlib

from ringzero.errors import FileSystemError
from ringzero.image.source import Part, Source
from ringzero.records import record

_SECTOR = 512
# Sectors of disks with 4 KiB ones: GPT counts in them.
_SECTOR_SIZES = (512, 4096)
_SIGNATURE = b"\x55\xaa"
_MBR_TABLE = 446
_MBR_ENTRY = struct.Struct("<B3sB3sII")
_DISK_ID = 440
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
# A chain of logical partitions that is longer has a loop in it, or is one of an attacker's.
_MAX_LOGICAL = 128

_GPT = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_MAGIC = b"EFI PART"
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
# The table is 128 entries of 128 bytes nearly everywhere; UEFI sets no upper limit.
_MAX_TABLE = 1 << 20

# Linux has no more partitions of a disk (DISK_MAX_PARTS).
_MOST = 256

_NAMES = {
    0x8E: "LVM",
    0xFD: "RAID",
    0x82: "swap",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": "LVM",
    "a19d880f-05fc-4d3b-a006-743f0f84911e": "RAID",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "swap",
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system partition",
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot partition",
}


@record
class Partition:
    """One partition: its number as Linux counts, bytes, type (MBR: hexadecimal), label, PARTUUID.

    `purpose` is what its type means, where that is known.
    """

    number: int
    start: int
    size: int
    type: str
    label: str = ""
    uuid: str = ""
    purpose: str = ""
    active: bool = False

    def open(self, disk: Source) -> Part:
        """Return its bytes. Raises FileSystemError when it lies outside the disk."""
        return Part(disk, self.start, self.size, f"partition {self.number}")


def read_partitions(disk: Source) -> list[Partition]:
    """Return the partitions of a disk by their numbers, 256 at most; none without a table.

    Raises FileSystemError when a GPT and its copy at the disk's end are both damaged.
    """
    if disk.size < 2 * _SECTOR:
        return []
    sector = disk.read(0, _SECTOR)
    entries = _mbr_entries(sector)
    gpt = _gpt(disk)
    if gpt is not None:
        return gpt[:_MOST]
    if entries is None:
        return []
    if any(kind == _PROTECTIVE for _, kind, _, _ in entries):
        raise FileSystemError(
            "the disk's GPT and its copy are damaged", hint="repair it with gdisk or sfdisk"
        )
    # A boot sector of FAT or NTFS has the same signature, and code where the table would be.
    plausible = all(flag in (0, 0x80) for flag, _, _, _ in entries)
    return _mbr(disk, sector, entries) if plausible else []


def _mbr_entries(sector: bytes) -> list[tuple[int, int, int, int]] | None:
    """Return (active flag, type, first sector, sectors) of the four entries; None without one."""
    if sector[510:512] != _SIGNATURE:
        return None
    fields = [_MBR_ENTRY.unpack_from(sector, _MBR_TABLE + 16 * n) for n in range(4)]
    return [(flag, kind, first, count) for flag, _, kind, _, first, count in fields]


def _mbr(disk: Source, sector: bytes, entries: list[tuple[int, int, int, int]]) -> list[Partition]:
    identifier = f"{int.from_bytes(sector[_DISK_ID : _DISK_ID + 4], 'little'):08x}"
    found: list[Partition] = []

    def add(number: int, flag: int, kind: int, first: int, count: int) -> None:
        if kind and count and (first + count) * _SECTOR <= disk.size:
            found.append(
                Partition(
                    number,
                    first * _SECTOR,
                    count * _SECTOR,
                    f"{kind:02x}",
                    uuid=f"{identifier}-{number:02x}",
                    purpose=_NAMES.get(kind, ""),
                    active=flag == 0x80,
                )
            )

    extended = 0
    for number, (flag, kind, first, count) in enumerate(entries, 1):
        if kind in _EXTENDED:
            extended = extended or first
        else:
            add(number, flag, kind, first, count)
    link, number, seen = extended, 5, set[int]()
    while link and link not in seen and len(seen) < _MAX_LOGICAL:
        seen.add(link)
        if (link + 1) * _SECTOR > disk.size:
            break
        chain = _mbr_entries(disk.read(link * _SECTOR, _SECTOR))
        if chain is None:
            break
        # Own partitions are counted from this sector on, the next link from the first one.
        (flag, kind, first, count), (_, onward, offset, _) = chain[:2]
        if kind:
            add(number, flag, kind, link + first, count)
            number += 1
        link = extended + offset if onward in _EXTENDED and offset else 0
    return found


def _gpt(disk: Source) -> list[Partition] | None:
    """Return what the first valid GPT of a disk lists; None where there is none."""
    for sector in _SECTOR_SIZES:
        for at in (sector, disk.size - disk.size % sector - sector):
            table = _gpt_at(disk, at, sector)
            if table is not None:
                return table
    return None


def _gpt_at(disk: Source, at: int, sector: int) -> list[Partition] | None:
    if not 0 <= at <= disk.size - sector:
        return None
    header = disk.read(at, sector)
    magic, _, size, crc, *_, table, count, step, table_crc = _GPT.unpack_from(header)
    if magic != _GPT_MAGIC or not _GPT.size <= size <= sector:
        return None
    if zlib.crc32(header[:16] + bytes(4) + header[20:size]) != crc:
        return None
    length = count * step
    if step < _GPT_ENTRY.size or length > _MAX_TABLE or table * sector + length > disk.size:
        return None
    data = disk.read(table * sector, length)
    if zlib.crc32(data) != table_crc:
        return None
    found = []
    for number in range(count):
        kind, own, first, last, _, name = _GPT_ENTRY.unpack_from(data, number * step)
        if kind == bytes(16) or not first <= last < disk.size // sector:
            continue
        text = str(uuid.UUID(bytes_le=kind))
        found.append(
            Partition(
                number + 1,
                first * sector,
                (last - first + 1) * sector,
                text,
                name.decode("utf-16-le", "replace").partition("\0")[0],
                str(uuid.UUID(bytes_le=own)),
                _NAMES.get(text, ""),
            )
        )
    return found
