"""The fixed structures of VHD; all numbers are big-endian."""

from __future__ import annotations

import os
import struct
import time
import uuid
from urllib.parse import quote, unquote
from uuid import UUID

from ringzero.disk.contract import SECTOR
from ringzero.disk.storage import Storage
from ringzero.errors import DiskFormatError, DiskUnsupportedError, InvalidValueError
from ringzero.records import field, mutable_record
from ringzero.units import MIB

COOKIE = b"conectix"
_SPARSE_COOKIE = b"cxsparse"
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
TYPES = {FIXED: "fixed", DYNAMIC: "dynamic", DIFFERENCING: "differencing"}

# cookie, features, version, data offset, time, creator, its version, its
# system, original size, current size, cylinders, heads, sectors, type,
# checksum, UUID, saved state.
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB")
_CHECKSUM_AT = 64
# cookie, data offset, table offset, version, entries, block size, checksum,
# parent UUID, parent time, reserved, parent name.
_HEADER = struct.Struct(">8sQQIIII16sII512s")
_HEADER_CHECKSUM_AT = 36
HEADER_SIZE = 1024
_LOCATOR = struct.Struct(">4sIIIQ")
_LOCATORS = 8
_LOCATOR_LIMIT = 64 * 1024

_NOWHERE = (1 << 64) - 1
_NIL = UUID(int=0)
_VERSION = 0x0001_0000
_RESERVED = 2
# 2000-01-01 00:00:00 UTC, from which VHD counts seconds.
_EPOCH = 946_684_800
# Who rounds sizes up to whole cylinders, and then means the cylinders.
_BY_GEOMETRY = (b"vpc ", b"qemu")
# Readers take the size of the footer as it is only from creators that they know.
_CREATOR, _SYSTEM = b"win ", b"Wi2k"
_MAX_GEOMETRY = (65535, 16, 255)
MAX_BLOCK = 256 * MIB


def timestamp() -> int:
    """Return the time now as images have it; 0 where the host's clock stands before 2000."""
    return max(0, int(time.time()) - _EPOCH) & 0xFFFF_FFFF


@mutable_record
class Footer:
    """The footer, of which dynamic images have a copy at the front."""

    size: int
    kind: int
    original: int = 0
    created: int = 0
    creator: bytes = _CREATOR
    unique: UUID = field(default_factory=uuid.uuid4)
    geometry: tuple[int, int, int] = (0, 0, 0)
    saved_state: int = 0
    # Where the dynamic header is, in bytes.
    header_offset: int = SECTOR

    @classmethod
    def make(cls, size: int, kind: int) -> Footer:
        """Return the footer of a new image."""
        return cls(size, kind, size, timestamp(), geometry=geometry(size))

    @classmethod
    def parse(cls, data: bytes, name: str) -> Footer | None:
        """Read a footer; None when there is none, or its checksum is wrong."""
        if len(data) < _FOOTER.size or not data.startswith(COOKIE):
            return None
        (_, _, version, header_offset, created, creator, _, _, original, size, cylinders, heads,
         sectors, kind, stored, unique, saved) = _FOOTER.unpack_from(data)  # fmt: skip
        if stored != checksum(data[:SECTOR], _CHECKSUM_AT):
            return None
        if version >> 16 != _VERSION >> 16:
            raise DiskUnsupportedError(f"{name}: VHD version {version:#x} is not known", path=name)
        if kind not in TYPES:
            raise DiskUnsupportedError(f"{name}: VHD type {kind} is not known", path=name)
        shape = cylinders, heads, sectors
        if creator in _BY_GEOMETRY and shape != _MAX_GEOMETRY:
            size = cylinders * heads * sectors * SECTOR
        if size > 1 << 62:
            raise DiskFormatError(f"{name}: a disk of {size} bytes", path=name)
        # Whole sectors, as QEMU has them.
        size = size // SECTOR * SECTOR
        return cls(
            size, kind, original, created, creator, UUID(bytes=unique), shape, saved, header_offset
        )

    def resize(self, size: int) -> None:
        """Take another size, which is the one that counts and not its geometry's."""
        self.size = self.original = size
        self.geometry = geometry(size)
        if self.creator in _BY_GEOMETRY:
            self.creator = _CREATOR

    def to_bytes(self) -> bytes:
        offset = _NOWHERE if self.kind == FIXED else self.header_offset
        fields = (
            COOKIE, _RESERVED, _VERSION, offset, self.created, self.creator, _VERSION, _SYSTEM,
            self.original, self.size, *self.geometry, self.kind,
        )  # fmt: skip
        rest = self.unique.bytes, self.saved_state
        data = _FOOTER.pack(*fields, 0, *rest).ljust(SECTOR, b"\0")
        found = checksum(data, _CHECKSUM_AT)
        return _FOOTER.pack(*fields, found, *rest).ljust(SECTOR, b"\0")


def read_footer(storage: Storage) -> Footer:
    """Return the footer at the end, or its copy at the front; DiskFormatError."""
    end = storage.size
    places = [storage.read(max(0, end - SECTOR), min(SECTOR, end)), storage.read(0, SECTOR)]
    # Before 2003, Connectix wrote 511 bytes.
    places.append(storage.read(max(0, end - SECTOR + 1), SECTOR - 1) + b"\0")
    for data in places:
        footer = Footer.parse(data, storage.name)
        if footer is not None:
            return footer
    raise DiskFormatError(f"{storage.name} has no valid VHD footer", path=storage.name)


@mutable_record
class Header:
    """The header of dynamic and differencing images."""

    table_offset: int
    entries: int
    block_size: int
    parent: UUID = _NIL
    parent_time: int = 0
    parent_name: str = ""
    # (platform code, room, length, offset) of the parent locators.
    locators: list[tuple[bytes, int, int, int]] = field(default_factory=list)

    @classmethod
    def read(cls, storage: Storage, size: int, place: int) -> Header:
        """Read and check the header at `place` of a disk of `size` bytes; DiskFormatError."""
        name = storage.name
        if not SECTOR <= place <= storage.size - HEADER_SIZE:
            raise DiskFormatError(
                f"{name}: the dynamic header is outside the file", path=name, offset=place
            )
        data = storage.read(place, HEADER_SIZE)
        (cookie, _, table_offset, version, entries, block_size, stored, parent, parent_time, _,
         parent_name) = _HEADER.unpack_from(data)  # fmt: skip
        if cookie != _SPARSE_COOKIE or stored != checksum(data, _HEADER_CHECKSUM_AT):
            raise DiskFormatError(f"{name}: the dynamic header is damaged", path=name)
        if version >> 16 != _VERSION >> 16:
            raise DiskUnsupportedError(f"{name}: VHD header version {version:#x}", path=name)
        if block_size & (block_size - 1) or not SECTOR * 8 <= block_size <= MAX_BLOCK:
            raise DiskFormatError(f"{name}: blocks of {block_size} bytes", path=name)
        if -(-size // block_size) > entries or table_offset + 4 * entries > storage.size:
            raise DiskFormatError(
                f"{name}: the block table is too short or outside the file", path=name
            )
        end = table_offset + 4 * entries
        over_header = table_offset < place + HEADER_SIZE and place < end
        if table_offset < SECTOR or over_header or table_offset % SECTOR:
            raise DiskFormatError(f"{name}: the block table is over the headers", path=name)
        locators = []
        for number in range(_LOCATORS):
            at = _HEADER.size + number * _LOCATOR.size
            code, room, length, _, offset = _LOCATOR.unpack_from(data, at)
            if code.strip(b"\0"):
                locators.append((code, room, length, offset))
        text = _text(parent_name, big_endian=True)
        return cls(
            table_offset, entries, block_size, UUID(bytes=parent), parent_time, text, locators
        )

    def to_bytes(self) -> bytes:
        text = self.parent_name.encode("utf-16-be", "surrogatepass")[:510]
        locators = b"".join(
            _LOCATOR.pack(code, room, length, 0, at) for code, room, length, at in self.locators
        )

        def packed(value: int) -> bytes:
            return (
                _HEADER.pack(
                    _SPARSE_COOKIE, _NOWHERE, self.table_offset, _VERSION, self.entries,
                    self.block_size, value, self.parent.bytes, self.parent_time, 0, text,
                )
                + locators
            ).ljust(HEADER_SIZE, b"\0")  # fmt: skip

        return packed(checksum(packed(0), _HEADER_CHECKSUM_AT))

    def parent_names(self, storage: Storage) -> list[str]:
        """Return what the image calls its parent, in the order in which the names are tried.

        Relative names come first: they hold when image and parent were moved together.
        """
        found: dict[bytes, bytes] = {}
        for code, _, length, at in self.locators:
            if length <= _LOCATOR_LIMIT and at + length <= storage.size:
                found[code] = storage.read(at, length)
        names = [
            _text(found.get(b"W2ru", b"")),
            _ansi(found.get(b"Wi2r", b"")),
            _from_url(found.get(b"MacX", b"")),
            _text(found.get(b"W2ku", b"")),
            _ansi(found.get(b"Wi2k", b"")),
            self.parent_name,
        ]
        return [name for name in names if name]


def _text(raw: bytes, *, big_endian: bool = False) -> str:
    """Return UTF-16 text up to a NUL, in the order of bytes that its letters of ASCII show."""
    high, low = raw[0::2].count(0), raw[1::2].count(0)
    if high != low:
        big_endian = high > low
    even = raw[: len(raw) // 2 * 2]
    text = even.decode("utf-16-be" if big_endian else "utf-16-le", "surrogatepass")
    return text.split("\0", 1)[0]


def _ansi(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("cp1252", "replace")


def _from_url(raw: bytes) -> str:
    """Return the path of a file URL; empty for others."""
    url = raw.split(b"\0")[0].decode("utf-8", "surrogateescape")
    for prefix in ("file://localhost/", "file:///"):
        if url.startswith(prefix):
            return "/" + unquote(url.removeprefix(prefix), errors="surrogateescape")
    return ""


def locators_for(name: str, relative: str) -> list[tuple[bytes, bytes]]:
    """Return (platform code, data) of the locators of a parent; InvalidValueError."""
    if "\\" in name:
        raise InvalidValueError(
            f"a VHD image cannot hold the name {name}: it has Windows paths",
            hint="use a name without a backslash",
        )
    windows = relative.replace("/", "\\")
    if not windows.startswith("."):
        windows = f".\\{windows}"
    found = [(b"W2ru", windows.encode("utf-16-le", "surrogatepass"))]
    if name.startswith("/"):
        url = f"file://localhost{quote(os.fsencode(name))}"
        found.append((b"MacX", url.encode()))
    return found


def checksum(data: bytes, at: int) -> int:
    """Return the one's complement of the sum of all bytes but the four at `at`."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFF_FFFF


def geometry(size: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors ("Appendix: CHS Calculation")."""
    total = min(size // SECTOR, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        heads, sectors = 16, 255
        tracks = total // sectors
    else:
        sectors = 17
        tracks = total // sectors
        heads = max(4, (tracks + 1023) // 1024)
        if tracks >= heads * 1024 or heads > 16:
            sectors, heads = 31, 16
            tracks = total // sectors
        if tracks >= heads * 1024:
            sectors, heads = 63, 16
            tracks = total // sectors
    return tracks // heads, heads, sectors
