"""Internal snapshots: their table, and creating, applying, deleting ("Snapshots").

A snapshot is a copy of the L1 table; what it points at is shared by counting
it once more. While counts and flags change, the image is marked dirty
(version 3), so that an interruption is repaired when it is next opened.
"""

from __future__ import annotations

import struct
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ringzero.disk.contract import Snapshot, Snapshots
from ringzero.disk.formats.qcow2.header import DIRTY, MAX_L1_BYTES, MAX_SNAPSHOTS
from ringzero.disk.formats.qcow2.image import Qcow2Image
from ringzero.disk.formats.qcow2.mapping import COMPRESSED, COPIED, OFFSET
from ringzero.disk.snapshotnames import find_to_delete, find_to_read
from ringzero.errors import (
    DiskFormatError,
    DiskUnsupportedError,
    InvalidValueError,
    RingzeroError,
)
from ringzero.records import record

_ENTRY = struct.Struct(">QIHHIIQII")
_EXTRA = struct.Struct(">QQ")

# QEMU's bound on the extra data of an entry (block/qcow2.h).
_MAX_EXTRA = 1024
# What a reader must be ready to hold for all snapshots' L1 tables together.
MAX_ALL_L1_BYTES = 256 << 20


@record
class Entry:
    """One entry of the snapshot table, with all that must survive its rewriting."""

    l1_offset: int
    l1_size: int
    id: bytes
    name: bytes
    date: int
    date_ns: int
    vm_clock: int
    vm_state: int
    extra: bytes

    @property
    def disk_size(self) -> int | None:
        return _EXTRA.unpack_from(self.extra)[1] if len(self.extra) >= _EXTRA.size else None

    @property
    def whole_vm_state(self) -> int:
        large = _EXTRA.unpack_from(self.extra)[0] if len(self.extra) >= _EXTRA.size else 0
        return large or self.vm_state

    @property
    def icount(self) -> int | None:
        if len(self.extra) < _EXTRA.size + 8:
            return None
        count = int.from_bytes(self.extra[_EXTRA.size : _EXTRA.size + 8], "big")
        # "-1: there was no counting" (qcow2, "icount").
        return None if count == (1 << 64) - 1 else count

    def public(self) -> Snapshot:
        return Snapshot(
            self.id.decode("utf-8", "replace"),
            self.name.decode("utf-8", "replace"),
            self.date,
            self.vm_clock,
            self.whole_vm_state,
            self.disk_size,
            self.date_ns,
            self.icount,
        )

    def to_bytes(self) -> bytes:
        fixed = _ENTRY.pack(
            self.l1_offset,
            self.l1_size,
            len(self.id),
            len(self.name),
            self.date,
            self.date_ns,
            self.vm_clock,
            self.vm_state,
            len(self.extra),
        )
        whole = fixed + self.extra + self.id + self.name
        return whole.ljust(-(-len(whole) // 8) * 8, b"\0")


def read_table(disk: Qcow2Image) -> tuple[list[Entry], int]:
    """Return the snapshots and the length of their table in bytes; DiskFormatError."""
    storage, header = disk.storage, disk.header
    found: list[Entry] = []
    at = header.snapshots_offset
    l1_bytes = 0
    for _ in range(header.snapshot_count):
        fixed = _ENTRY.unpack(storage.read(at, _ENTRY.size))
        l1_offset, l1_size, id_size, name_size, *times, extra_size = fixed
        date, date_ns, clock, state = times
        l1_bytes += l1_size * 8
        if (
            extra_size > _MAX_EXTRA
            or l1_size * 8 > MAX_L1_BYTES
            or l1_bytes > MAX_ALL_L1_BYTES
            or l1_offset % disk.cluster_size
            or l1_offset + l1_size * 8 > storage.size
            or at + _ENTRY.size > storage.size
        ):
            raise DiskFormatError(
                f"{storage.name}: snapshot {len(found) + 1} makes no sense",
                hint="run `ringzero disk check`",
                path=storage.name,
                offset=at,
            )
        rest = storage.read(at + _ENTRY.size, extra_size + id_size + name_size)
        extra, rest = rest[:extra_size], rest[extra_size:]
        found.append(
            Entry(
                l1_offset,
                l1_size,
                rest[:id_size],
                rest[id_size:],
                date,
                date_ns,
                clock,
                state,
                extra,
            )
        )
        at += -(-(_ENTRY.size + extra_size + id_size + name_size) // 8) * 8
    return found, at - header.snapshots_offset


class Qcow2Snapshots(Snapshots):
    """The internal snapshots of one image."""

    def __init__(self, disk: Qcow2Image) -> None:
        self.disk = disk

    def list(self) -> Sequence[Snapshot]:
        return [entry.public() for entry in read_table(self.disk)[0]]

    def create(self, name: str) -> Snapshot:
        disk = self.disk
        with self._change() as entries:
            if len(entries) >= MAX_SNAPSHOTS:
                raise DiskUnsupportedError(f"an image holds at most {MAX_SNAPSHOTS} snapshots")
            raw = name.encode("utf-8", "surrogateescape")
            if not name or any(entry.name == raw for entry in entries):
                raise InvalidValueError(
                    f"a snapshot called {name!r} exists" if name else "a snapshot needs a name",
                    hint="choose another name",
                )
            active = disk.map.l1.items
            self._count(active, 1)
            ids = [int(entry.id) for entry in entries if entry.id.isdigit()]
            now = time.time_ns()
            copy = array("Q", [value & ~COPIED for value in active])
            entry = Entry(
                self._write_new(_big_endian(copy)),
                len(copy),
                str(max(ids, default=0) + 1).encode(),
                raw,
                now // 10**9 & 0xFFFF_FFFF,
                now % 10**9,
                0,
                0,
                # vm_state_size, disk_size, and no instruction count.
                _EXTRA.pack(0, disk.size) + b"\xff" * 8,
            )
            self._retag()
            self._write_table([*entries, entry])
        return entry.public()

    def show(self, which: str) -> None:
        """Let the disk, which is open read-only, read as the snapshot has it."""
        disk = self.disk
        entry = find_to_read(read_table(disk)[0], which)
        size, active = self._active_of(entry)
        disk.header.size = size
        disk.map.replace_l1(active, entry.l1_offset)

    def _active_of(self, entry: Entry) -> tuple[int, array[int]]:
        """Return the size and the L1 table that the disk has with a snapshot applied."""
        disk = self.disk
        size = disk.size if entry.disk_size is None else entry.disk_size // 512 * 512
        if disk.header.l1_needed(size) > MAX_L1_BYTES // 8:
            raise DiskFormatError(f"snapshot {entry.name!r} is of an impossible size: {size}")
        items = self._l1_of(entry)
        active = array("Q", [value & ~COPIED for value in items])
        needed = max(len(items), disk.header.l1_needed(size))
        active.extend(array("Q", bytes(8 * (needed - len(items)))))
        return size, active

    def apply(self, which: str) -> None:
        disk = self.disk
        disk.touch(0, disk.size)
        with self._change() as entries:
            entry = find_to_read(entries, which)
            size, active = self._active_of(entry)
            self._count(self._l1_of(entry), 1)
            old = disk.map.l1.items
            disk.header.size = size
            disk.switch_l1(active)
            self._count(old, -1)
            self._retag()
            disk._write_back()

    def delete(self, which: str) -> None:
        with self._change() as entries:
            entry = find_to_delete(entries, which)
            items = self._l1_of(entry)
            self._write_table([other for other in entries if other is not entry])
            self._count(items, -1)
            self._release(entry.l1_offset, entry.l1_size * 8)
            self._retag()

    # ---- the parts of a change --------------------------------------------

    @contextmanager
    def _change(self) -> Iterator[Sequence[Entry]]:
        """Keep everybody out, mark the image dirty, hand out the table, and tidy up at the end."""
        disk = self.disk
        if disk.read_only:
            raise disk._read_only_error()
        if disk.map.external:
            raise DiskUnsupportedError("an image with an external data file has no snapshots")
        with disk.at_rest():
            entries, _ = read_table(disk)
            self._mark(True)
            try:
                yield entries
            finally:
                disk._write_back()
                disk._flush_storages()
                self._mark(False)
        disk._flush()

    def _mark(self, dirty: bool) -> None:
        disk = self.disk
        if disk.header.version < 3:
            return
        disk.header.incompatible &= ~DIRTY
        disk.header.incompatible |= DIRTY if dirty else 0
        disk.header.write(disk.storage)
        disk.storage.flush()

    def _l1_of(self, entry: Entry) -> array[int]:
        items = array("Q")
        items.frombytes(self.disk.storage.read(entry.l1_offset, entry.l1_size * 8))
        items.byteswap()
        return items

    def _count(self, l1: array[int], change: int) -> None:
        """Count everything that `l1` leads to once more, or once less; all or nothing."""
        refcounts = self.disk.refcounts
        done = 0
        try:
            for cluster in self._reached(l1):
                if change > 0 or refcounts.get(cluster):
                    refcounts.add(cluster, change)
                done += 1
        except RingzeroError:
            for cluster, _ in zip(self._reached(l1), range(done), strict=False):
                refcounts.add(cluster, -change)
            raise

    def _reached(self, l1: array[int]) -> Iterator[int]:
        """Yield the host clusters of the L2 tables of `l1` and of what they point at."""
        disk = self.disk
        bits, step = disk.header.cluster_bits, disk.map.words
        for l1_entry in l1:
            offset = l1_entry & OFFSET
            if not offset:
                continue
            yield offset >> bits
            for entry in disk.map.read_table(offset).items[::step]:
                if entry & COMPRESSED:
                    yield from disk.clusters_of(entry)
                elif entry & OFFSET:
                    yield (entry & OFFSET) >> bits

    def _retag(self) -> None:
        """Set the COPIED flags of the active tables by the refcounts."""
        disk = self.disk
        refcounts, bits, step = disk.refcounts, disk.header.cluster_bits, disk.map.words
        l1 = disk.map.l1
        for number, l1_entry in enumerate(l1.items):
            table = disk.map.table(number)
            if table is None:
                continue
            flag = COPIED if refcounts.get((l1_entry & OFFSET) >> bits) == 1 else 0
            if l1_entry & COPIED != flag:
                l1.set(number, l1_entry & ~COPIED | flag)
            items = table.items
            for place in range(0, len(items), step):
                entry = items[place]
                if entry & COMPRESSED or not entry & OFFSET:
                    continue
                flag = COPIED if refcounts.get((entry & OFFSET) >> bits) == 1 else 0
                if entry & COPIED != flag:
                    disk.map.retag(number, place, entry & ~COPIED | flag)
            if disk.map.crowded:
                disk._write_back()

    def _write_new(self, data: bytes) -> int:
        """Write `data` into new clusters and return their offset."""
        disk = self.disk
        size = disk.cluster_size
        count = max(1, -(-len(data) // size))
        offset = disk.refcounts.allocate_row(count) << disk.header.cluster_bits
        disk.storage.write(offset, data.ljust(count * size, b"\0"))
        return offset

    def _write_table(self, entries: Sequence[Entry]) -> None:
        """Write the snapshot table to a new place and let the header refer to it."""
        disk = self.disk
        header = disk.header
        _, old_length = read_table(disk)
        old_offset = header.snapshots_offset
        data = b"".join(entry.to_bytes() for entry in entries)
        offset = self._write_new(data) if entries else 0
        disk._write_back()
        disk._flush_storages()
        header.snapshot_count, header.snapshots_offset = len(entries), offset
        header.write(disk.storage)
        disk.storage.flush()
        if old_length:
            self._release(old_offset, old_length)

    def _release(self, offset: int, length: int) -> None:
        disk = self.disk
        first = offset >> disk.header.cluster_bits
        for cluster in range(first, first + -(-length // disk.cluster_size)):
            disk.refcounts.add(cluster, -1)


def _big_endian(items: array[int]) -> bytes:
    swapped = items[:]
    swapped.byteswap()
    return swapped.tobytes()
