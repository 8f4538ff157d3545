"""Making VMDK disks longer and shorter.

The descriptor says how long the disk is. What is new is durable before it
says so, and what is cut off goes after it has said so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ringzero.disk.contract import SECTOR, Surroundings
from ringzero.disk.formats.vmdk.create import MAX_SPARSE, SPLIT, lay_sparse, part_name
from ringzero.disk.formats.vmdk.descriptor import Descriptor, ExtentLine, with_extents
from ringzero.disk.formats.vmdk.extents import FlatExtent, SparseExtent, ZeroExtent
from ringzero.disk.formats.vmdk.header import Header
from ringzero.disk.storage import Storage
from ringzero.errors import DiskUnsupportedError, InvalidValueError
from ringzero.records import replace


class Extents(Protocol):
    """What is resized: a descriptor, the extents that it lists, and how both are changed."""

    path: Path | None
    storage: Storage
    around: Surroundings
    descriptor: Descriptor
    place: tuple[int, int]
    parts: list[FlatExtent | ZeroExtent | SparseExtent]

    @property
    def size(self) -> int: ...

    def begin(self) -> None: ...

    def flush(self) -> None: ...

    def add_parts(self, parts: Sequence[FlatExtent | SparseExtent]) -> None: ...

    def drop_parts(self, count: int) -> None: ...

    def write_descriptor(self, data: bytes) -> None: ...


def resize(disk: Extents, size: int) -> None:
    """Make the disk `size` bytes long; DiskUnsupportedError for layouts that cannot change."""
    if any(not isinstance(part, (FlatExtent, SparseExtent)) or part.read_only
           for part in disk.parts):  # fmt: skip
        raise DiskUnsupportedError(
            "a VMDK image of this layout cannot be resized", hint="convert it to another size"
        )
    split = disk.descriptor.create_type.startswith("twoGb")
    if len(disk.parts) > 1 and not split:
        raise DiskUnsupportedError("a VMDK image of several extents of its own kinds")
    if isinstance(disk.parts[0], SparseExtent) and not split and size > MAX_SPARSE:
        raise InvalidValueError("one sparse extent has 2047G at most", hint="use another format")
    if split and not size:
        raise InvalidValueError("a disk in several extents has at least one of them")
    wanted = [min(SPLIT, size - at) for at in range(0, size, SPLIT)] if split else [size]
    if split and [part.size for part in disk.parts[:-1]] != [SPLIT] * (len(disk.parts) - 1):
        raise DiskUnsupportedError("the extents of this image are not of 2 GiB each")
    if size > disk.size:
        _grow(disk, wanted)
    else:
        _shrink(disk, wanted)


def _grow(disk: Extents, wanted: list[int]) -> None:
    lines = list(disk.descriptor.extents)
    last = len(lines) - 1
    old = disk.parts[last].size
    disk.parts[last].stretch(wanted[last])  # type: ignore[union-attr]
    lines[last] = replace(lines[last], sectors=wanted[last] // SECTOR)
    fresh: list[FlatExtent | SparseExtent] = []
    try:
        for number, length in enumerate(wanted[last + 1 :], last + 2):
            part, line = _new_part(disk, number, length)
            fresh.append(part)
            lines.append(line)
    except BaseException:
        for part in fresh:
            part.close()
        raise
    _describe(disk, lines)
    disk.add_parts(fresh)
    grown = disk.parts[last]
    if isinstance(grown, SparseExtent) and wanted[last] > old:
        grown._zero_new(old, wanted[last])


def _shrink(disk: Extents, wanted: list[int]) -> None:
    lines = list(disk.descriptor.extents)[: len(wanted)]
    last = len(wanted) - 1
    gone = disk.descriptor.extents[len(wanted) :]
    lines[last] = replace(lines[last], sectors=wanted[last] // SECTOR)
    disk.flush()
    _describe(disk, lines)
    disk.drop_parts(len(wanted))
    disk.parts[last].cut(wanted[last])  # type: ignore[union-attr]
    disk.add_parts([])
    for line in gone:
        disk.around.remove_storage(line.filename)


def _describe(disk: Extents, lines: list[ExtentLine]) -> None:
    """Write the descriptor with other extents, durably."""
    disk.begin()
    raw = disk.storage.read(*disk.place).split(b"\0", 1)[0]
    size = sum(line.sectors for line in lines)
    disk.write_descriptor(with_extents(raw, lines, size, disk.descriptor.codec))
    disk.storage.flush()
    disk.descriptor.extents = lines


def _new_part(
    disk: Extents, number: int, length: int
) -> tuple[FlatExtent | SparseExtent, ExtentLine]:
    first = disk.parts[0]
    flat = isinstance(first, FlatExtent)
    assert disk.path is not None
    name = part_name(disk.path, number, flat)
    storage = disk.around.create_storage(name)
    try:
        line = ExtentLine("RW", length // SECTOR, "FLAT" if flat else "SPARSE", name)
        if isinstance(first, FlatExtent):
            storage.truncate(length)
            storage.flush()
            return FlatExtent(storage, 0, length, read_only=False), line
        zeroed_grain = isinstance(first, SparseExtent) and first.zero_grains
        lay_sparse(storage, length, zeroed_grain=zeroed_grain)
        storage.flush()
        return SparseExtent(storage, Header.read(storage), read_only=False), line
    except BaseException:
        storage.close()
        raise
