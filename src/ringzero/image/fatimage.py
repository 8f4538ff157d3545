"""A FAT file system with a few files, as bytes: what is handed to a guest, or to its firmware.

The same files give the same bytes: there is no time in it, and its serial number comes from the
content. FAT12 (Microsoft, "FAT: General Overview of On-Disk Format"); long names throughout, so
that case stays.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

from ringzero.errors import InvalidValueError
from ringzero.units import format_size

_SECTOR = 512
_ENTRY = 32
# More clusters make it FAT16; the largest cluster that everybody reads is 32 KiB.
_MAX_CLUSTERS = 4084
_CLUSTERS = tuple(_SECTOR << n for n in range(7))
_ROOT_ENTRIES = 512
_MEDIA = 0xF8
# 1 January 1980, the first day that FAT knows.
_DATE = 1 << 5 | 1
_ARCHIVE, _FOLDER, _VOLUME, _LONG, _LAST = 0x20, 0x10, 0x08, 0x0F, 0x40
_END = 0xFFF


def fat_image(files: Mapping[str, bytes], label: str) -> bytes:
    """Return a file system called `label` (11 characters) that holds `files` by their paths.

    Raises InvalidValueError when they are too large together, or too many.
    """
    folders = {"": dict[str, bytes | None]()}
    for path, whole in files.items():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folders.setdefault("/".join(parts[:depth]), {})
            folders["/".join(parts[: depth - 1])].setdefault(parts[depth - 1], None)
        folders["/".join(parts[:-1])][parts[-1]] = whole
    lengths = {path: _length(path, inside) for path, inside in folders.items()}
    if lengths[""] > _ROOT_ENTRIES * _ENTRY:
        raise InvalidValueError(f"{len(files)} files with long names are too many for a FAT12 disk")
    sizes = [len(data) for data in files.values()]
    sizes += [length for path, length in lengths.items() if path]
    for cluster in _CLUSTERS:
        clusters = sum(-(-size // cluster) for size in sizes) + 1
        if clusters <= _MAX_CLUSTERS:
            break
    else:
        raise InvalidValueError(f"{format_size(sum(sizes))} of files are too much for a FAT12 disk")
    links = [0xF00 | _MEDIA, _END]
    places = {"": 0}

    def take(size: int) -> int:
        count = -(-size // cluster)
        first = len(links) if count else 0
        links.extend([*range(first + 1, first + count), _END] if count else [])
        return first

    # Directories before what is in them, and all of them before files.
    for path, length in lengths.items():
        if path:
            places[path] = take(length)
    tables, content = list[bytes](), bytearray()
    for path, inside in folders.items():
        head = [_raw_entry(label.upper().ljust(11).encode("ascii"), _VOLUME, 0, 0)]
        if path:
            above = places[path.rpartition("/")[0]]
            dots = ((b".          ", places[path]), (b"..         ", above))
            head = [_raw_entry(name, _FOLDER, at, 0) for name, at in dots]
        entries = head
        for number, (name, data) in enumerate(inside.items(), 1):
            if data is None:
                place = places[f"{path}/{name}" if path else name]
                entries = entries + _entries(name, number, place, 0, _FOLDER)
            else:
                entries = entries + _entries(name, number, take(len(data)), len(data))
                content += data.ljust(-(-len(data) // cluster) * cluster, b"\0")
        tables.append(b"".join(entries))
    root = tables[0].ljust(_ROOT_ENTRIES * _ENTRY, b"\0")
    inner = b"".join(t.ljust(-(-len(t) // cluster) * cluster, b"\0") for t in tables[1:])
    links += [0] * (clusters + 2 - len(links))
    table = _packed(links)
    fat_sectors = -(-len(table) // _SECTOR)
    data_sectors = clusters * cluster // _SECTOR
    total = 1 + 2 * fat_sectors + len(root) // _SECTOR + data_sectors
    body = bytes(table).ljust(fat_sectors * _SECTOR, b"\0") * 2 + root
    body += (inner + bytes(content)).ljust(data_sectors * _SECTOR, b"\0")
    serial = hashlib.sha256(body).digest()[:4]
    return _boot_sector(cluster, fat_sectors, total, serial, label) + body


def _length(path: str, inside: Mapping[str, bytes | None]) -> int:
    """Return how many bytes the entries of a directory take."""
    pieces = sum(len(_entries(name, 1, 0, 0)) for name in inside)
    return (pieces + (2 if path else 1)) * _ENTRY


def _boot_sector(cluster: int, fat: int, total: int, serial: bytes, label: str) -> bytes:
    small = total if total < 1 << 16 else 0
    head = b"\xeb\x3c\x90ringzero" + struct.pack(
        "<HBHBHHBHHHII",
        _SECTOR, cluster // _SECTOR, 1, 2, _ROOT_ENTRIES, small, _MEDIA, fat, 32, 2, 0,
        0 if small else total,
    )  # fmt: skip
    head += b"\x80\0\x29" + serial + label.upper().ljust(11).encode("ascii") + b"FAT12   "
    return head.ljust(510, b"\0") + b"\x55\xaa"


def _packed(links: list[int]) -> bytes:
    """Return 12-bit links, two in three bytes."""
    data = bytearray()
    for low, high in zip(links[::2], [*links[1::2], 0], strict=False):
        data += (low | high << 12).to_bytes(3, "little")
    return bytes(data)


def _entries(name: str, number: int, cluster: int, size: int, kind: int = _ARCHIVE) -> list[bytes]:
    """Return the pieces of a long name, the last first, and the short entry behind them."""
    short = f"FILE{number:04}   ".encode("ascii")
    checksum = 0
    for byte in short:
        checksum = ((checksum & 1) << 7 | checksum >> 1) + byte & 0xFF
    text = name.encode("utf-16-le")
    if len(text) % 26:
        text = (text + b"\0\0").ljust(-(-len(text) // 26) * 26, b"\xff")
    pieces = [text[at : at + 26] for at in range(0, len(text), 26)]
    found = []
    for order in range(len(pieces), 0, -1):
        piece = pieces[order - 1]
        first = order | (_LAST if order == len(pieces) else 0)
        head = bytes((first,)) + piece[:10] + bytes((_LONG, 0, checksum))
        found.append(head + piece[10:22] + bytes(2) + piece[22:])
    return [*found, _raw_entry(short, kind, cluster, size)]


def _raw_entry(name: bytes, attributes: int, cluster: int, size: int) -> bytes:
    return struct.pack(
        "<11sBBBHHHHHHHI",
        name, attributes, 0, 0, 0, _DATE, _DATE, 0, 0, _DATE, cluster, size,
    )  # fmt: skip
