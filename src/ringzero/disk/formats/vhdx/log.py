"""The VHDX log: structures change in it first, whole 4 KiB sectors at a time ([MS-VHDX] 2.3).

An entry that `Log.write` makes is a sequence of its own: what was logged
before it is durable in its place already, so that a replay needs only the last one.
"""

from __future__ import annotations

import bisect
import struct
import uuid
from collections.abc import Iterator, Sequence
from typing import NoReturn
from uuid import UUID

from ringzero.disk.crc32c import crc32c
from ringzero.disk.formats.vhdx.structures import Header
from ringzero.disk.storage import Storage
from ringzero.disk.vectors import Buffers, Views, cut, total
from ringzero.errors import DiskFormatError, DiskReadOnlyError
from ringzero.records import record
from ringzero.units import KIB, MIB

SECTOR = 4 * KIB

# signature, checksum, entry length, tail, sequence, descriptors, log GUID,
# flushed file offset, last file offset.
_ENTRY = struct.Struct("<4sIIIQI4x16sQQ")
_DESCRIPTOR = struct.Struct("<4sIQQQ")
_DATA = struct.Struct("<4sI4084sI")
_PER_HEADER = (SECTOR - 64) // 32

# A hostile file may have 4 GiB of log; this is what a replay may take in memory.
_MAX_LOG = 256 * MIB


@record
class _Entry:
    offset: int
    length: int
    tail: int
    sequence: int
    flushed: int
    last: int
    data: bytes


class Log:
    """The log region of a file that is written to."""

    def __init__(self, storage: Storage, header: Header) -> None:
        self.storage = storage
        self.header = header
        self.offset = header.log_offset
        self.length = header.log_length
        self.guid = uuid.uuid4()
        self._at = 0
        self._sequence = 0

    def write(self, sectors: Sequence[tuple[int, bytes]]) -> None:
        """Make 4 KiB sectors durable: in the log, then in their places. Flushes.

        On return they are written in their places, but flushed only but for the last entry.
        """
        room = self.length // SECTOR
        each = max(1, min(_PER_HEADER, room - 2))
        for start in range(0, len(sectors), each):
            part = sectors[start : start + each]
            if start:
                # One sequence holds one entry; what the last one logged must stay.
                self.storage.flush()
            self._enter(part)
            self.storage.flush()
            if self.header.log_guid != self.guid:
                # Only now: a header must not name a log in which there is nothing.
                self.header.log_guid = self.guid
                self.header.write(self.storage)
            for offset, data in part:
                self.storage.write(offset, data)

    def _enter(self, sectors: Sequence[tuple[int, bytes]]) -> None:
        self._sequence += 1
        sequence = self._sequence
        length = SECTOR * (1 + len(sectors))
        # An entry may wrap around; starting over costs less than code for it.
        if self._at + length > self.length:
            self._at = 0
        descriptors = b"".join(
            _DESCRIPTOR.pack(
                b"desc",
                int.from_bytes(data[-4:], "little"),
                int.from_bytes(data[:8], "little"),
                offset,
                sequence,
            )
            for offset, data in sectors
        )
        body = b"".join(
            _DATA.pack(b"data", sequence >> 32, data[8:-4], sequence & 0xFFFF_FFFF)
            for _, data in sectors
        )

        def entry(checksum: int) -> bytes:
            head = _ENTRY.pack(
                b"loge",
                checksum,
                length,
                self._at,
                sequence,
                len(sectors),
                self.guid.bytes_le,
                self.storage.size,
                self.storage.size,
            )
            return (head + descriptors).ljust(SECTOR, b"\0") + body

        self.storage.write(self.offset + self._at, entry(crc32c(entry(0))))
        self._at += length
        if self._at >= self.length:
            self._at = 0


def pending(
    storage: Storage, offset: int, length: int, guid: UUID
) -> tuple[list[tuple[int, int, bytes | None]], int]:
    """Return what a replay has to write, in order, and how long the file must be.

    A write is (file offset, length, bytes or None for zeroes).
    Raises DiskFormatError when the log is active but damaged.
    """
    if length > _MAX_LOG or offset + length > storage.size or not length:
        raise DiskFormatError(
            f"{storage.name}: the log lies outside the file or is too long", path=storage.name
        )
    ring = storage.read(offset, length)
    best: list[_Entry] = []
    for start in _starts(ring):
        sequence = _sequence_from(ring, start, guid)
        # Active: the head names a tail inside the sequence; the newest head wins (2.3.3).
        if sequence and (not best or sequence[-1].sequence > best[-1].sequence):
            tails = [entry.offset for entry in sequence]
            if sequence[-1].tail in tails:
                best = sequence[tails.index(sequence[-1].tail) :]
    if not best:
        raise DiskFormatError(
            f"{storage.name}: it was not closed properly, and its log is damaged",
            hint="the file is incomplete; restore it from a copy",
            path=storage.name,
        )
    if best[-1].flushed > storage.size:
        raise DiskFormatError(
            f"{storage.name}: the file is shorter than its log says", path=storage.name
        )
    writes = [write for entry in best for write in _writes(entry, storage.name)]
    return writes, best[-1].last


def _starts(ring: bytes) -> Iterator[int]:
    for start in range(0, len(ring), SECTOR):
        if ring[start : start + 4] == b"loge":
            yield start


def _sequence_from(ring: bytes, start: int, guid: UUID) -> list[_Entry]:
    """Return the valid entries that follow one another from `start` on."""
    found: list[_Entry] = []
    at = start
    covered = 0
    while covered < len(ring):
        entry = _parse(ring, at, guid)
        if entry is None or (found and entry.sequence != found[-1].sequence + 1):
            break
        found.append(entry)
        covered += entry.length
        at = (at + entry.length) % len(ring)
    return found


def _parse(ring: bytes, at: int, guid: UUID) -> _Entry | None:
    signature, checksum, length, tail, sequence, count, raw, flushed, last = _ENTRY.unpack_from(
        ring, at
    )
    if signature != b"loge" or UUID(bytes_le=raw) != guid or not sequence:
        return None
    if not SECTOR <= length <= len(ring) or length % SECTOR or tail % SECTOR:
        return None
    if 64 + 32 * count > length or tail >= len(ring):
        return None
    data = (ring[at : at + length] + ring[: max(0, at + length - len(ring))])[:length]
    if crc32c(data[:4] + bytes(4) + data[8:]) != checksum:
        return None
    return _Entry(at, length, tail, sequence, flushed, last, data)


def _writes(entry: _Entry, name: str) -> Iterator[tuple[int, int, bytes | None]]:
    (count,) = struct.unpack_from("<I", entry.data, 24)
    at = -(-(64 + 32 * count) // SECTOR) * SECTOR
    for number in range(count):
        kind, trailing, leading, offset, sequence = _DESCRIPTOR.unpack_from(
            entry.data, 64 + 32 * number
        )
        # The log must not reach over the headers, nor make the file larger
        # than any VHDX file is.
        if sequence != entry.sequence or offset % SECTOR or offset >= 1 << 47:
            raise DiskFormatError(f"{name}: a descriptor in the log is invalid", path=name)
        if kind == b"zero":
            if leading % SECTOR or offset + leading > max(entry.last, entry.flushed):
                raise DiskFormatError(f"{name}: a descriptor in the log is invalid", path=name)
            yield offset, leading, None
            continue
        if kind != b"desc" or at + SECTOR > len(entry.data):
            raise DiskFormatError(f"{name}: a descriptor in the log is invalid", path=name)
        signature, high, middle, low = _DATA.unpack_from(entry.data, at)
        if signature != b"data" or (high << 32 | low) != entry.sequence:
            raise DiskFormatError(f"{name}: a data sector in the log is torn", path=name)
        at += SECTOR
        data = leading.to_bytes(8, "little") + middle + trailing.to_bytes(4, "little")
        yield offset, SECTOR, data


class Replayed(Storage):
    """A read-only file as it would be after the replay of its log; nothing is written."""

    def __init__(
        self, below: Storage, writes: Sequence[tuple[int, int, bytes | None]], size: int
    ) -> None:
        self.below = below
        self.name = below.name
        self.read_only = True
        self._size = max(size, below.size)
        self._sectors: dict[int, bytes] = {}
        self._zeroes: list[tuple[int, int]] = []
        for offset, length, data in writes:
            if data is not None:
                self._sectors[offset] = data
                continue
            for at in [at for at in self._sectors if offset <= at < offset + length]:
                del self._sectors[at]
            self._zeroes.append((offset, length))
        self._order = sorted(self._sectors)

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, offset: int, views: Views) -> None:
        self.below.read_into(offset, views)
        end = offset + total(views)
        for at, length in self._zeroes:
            count = max(0, min(end, at + length) - max(offset, at))
            self._lay(offset, end, views, at, bytes(count))
        first = bisect.bisect_left(self._order, offset - SECTOR + 1)
        for at in self._order[first : bisect.bisect_left(self._order, end)]:
            data = self._sectors[at]
            self._lay(offset, end, views, at, data[max(0, offset - at) : end - at])

    @staticmethod
    def _lay(offset: int, end: int, views: Views, at: int, data: bytes) -> None:
        """Copy `data`, cut to the range already, over the views from `max(offset, at)` on."""
        done = 0
        if at >= end or not data:
            return
        for view in cut(views, max(0, at - offset), len(data)):
            view[:] = data[done : done + len(view)]
            done += len(view)

    def write(self, offset: int, buffers: Buffers) -> None:
        self._refuse()

    def flush(self) -> None:
        """Nothing was written."""

    def truncate(self, size: int) -> None:
        self._refuse()

    def discard(self, offset: int, length: int) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise DiskReadOnlyError(f"{self.name} is open read-only", path=self.name)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        # What a log holds are structures, which are data in the file as well.
        return self.below.extents(offset, length)

    def allocated(self) -> int:
        return self.below.allocated()

    def close(self) -> None:
        self.below.close()
