"""Laying empty VMDK images of every sub-format."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ringzero.disk.contract import SECTOR, Option, Options, Surroundings
from ringzero.disk.formats.vmdk.descriptor import (
    NO_PARENT,
    Descriptor,
    ExtentLine,
    geometry,
    quotable,
)
from ringzero.disk.formats.vmdk.header import (
    COMPRESSED,
    LINE_ENDS_VALID,
    MARKERS,
    REDUNDANT,
    ZERO_GRAINS,
    Header,
)
from ringzero.disk.formats.vmdk.stream import front, sector_numbers, trailer
from ringzero.disk.storage import FileStorage, Storage
from ringzero.errors import InvalidValueError
from ringzero.units import GIB, TIB

SUBFORMATS = (
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
)

CREATE_OPTIONS = (
    Option.choice("subformat", SUBFORMATS, "monolithicSparse", "how the disk is laid out"),
    Option.choice(
        "adapter_type",
        ("ide", "lsilogic", "buslogic", "legacyESX"),
        "ide",
        "the controller that the geometry is for",
    ),
    Option("hwversion", str, None, "virtual hardware version written into the image"),
    Option("toolsversion", str, None, "version of the guest tools written into the image"),
    Option.flag("compat6", False, "virtual hardware version 6"),
    Option.flag("zeroed_grain", False, "mark grains as zero without writing them"),
    Option.choice("preallocation", ("off", "falloc", "full"), "off", "for flat subformats"),
)

# The room that VMware leaves for the descriptor inside a sparse extent.
_DESCRIPTOR_SECTORS = 20
SPLIT = 2 * GIB
# What 32 bits of sectors reach, less what the tables take: an image that can be filled.
MAX_SPARSE = 2047 * GIB
# A stream is written once, and takes what is in it; ESX has disks of 62 TiB at most.
_MAX_STREAM = 64 * TIB


def fresh_cid() -> int:
    """Return a content id that no reader takes for "no parent"."""
    return int.from_bytes(os.urandom(8), "little") % (NO_PARENT - 1) + 1


def lay_out(
    storage: Storage,
    size: int,
    options: Options,
    around: Surroundings,
    parent: tuple[str, int] | None,
) -> None:
    """Write an empty image; `parent` is the name and content id of its parent."""
    subformat = options["subformat"]
    flat, split = subformat.endswith("Flat"), subformat.startswith("twoGb")
    stream = subformat == "streamOptimized"
    if parent and (flat or stream):
        raise InvalidValueError(f"a {subformat} image has no backing file")
    if options["preallocation"] != "off" and not flat:
        raise InvalidValueError("preallocation needs a flat subformat")
    most = _MAX_STREAM if stream else MAX_SPARSE
    if not flat and not split and size > most:
        raise InvalidValueError(
            f"{subformat} has {most // GIB}G at most",
            hint="use twoGbMaxExtentSparse, or another format",
        )
    hardware = options["hwversion"] or ("6" if options["compat6"] else "4")
    database = geometry(size, options["adapter_type"], hardware)
    if options["toolsversion"]:
        database["ddb.toolsVersion"] = options["toolsversion"]
    descriptor = Descriptor(subformat, fresh_cid(), database=database)
    if parent:
        descriptor.parent_name, descriptor.parent_cid = quotable(parent[0]), parent[1]
    assert around.path is not None
    if not flat and not split:
        # The one extent is the file that the descriptor is in, whatever it is called.
        own = re.sub(r'["\0-\x1f]', "_", around.path.name)
        descriptor.extents = [ExtentLine("RW", size // SECTOR, "SPARSE", own)]
        zeroed = options["zeroed_grain"]
        lay_sparse(storage, size, descriptor.to_bytes(), zeroed_grain=zeroed, stream=stream)
        return
    for number, start in enumerate(range(0, size, SPLIT) if split else [0], 1):
        length = min(SPLIT, size - start) if split else size
        name = quotable(part_name(around.path, number if split else None, flat))
        descriptor.extents.append(
            ExtentLine("RW", length // SECTOR, "FLAT" if flat else "SPARSE", name)
        )
        part = around.create_storage(name)
        try:
            if flat:
                _flat(part, length, options["preallocation"])
            else:
                lay_sparse(part, length, zeroed_grain=options["zeroed_grain"])
            part.flush()
        finally:
            part.close()
    storage.write(0, descriptor.to_bytes())


def part_name(path: Path, number: int | None, flat: bool) -> str:
    """Return the name of the file of one extent of the disk `path`."""
    end = "flat" if number is None else f"{'f' if flat else 's'}{number:03}"
    return f"{path.stem}-{end}{path.suffix or '.vmdk'}"


def _flat(storage: Storage, size: int, preallocation: str) -> None:
    storage.truncate(size)
    if preallocation == "full":
        Storage.write_zeroes(storage, 0, size)
    elif preallocation == "falloc" and isinstance(storage, FileStorage):
        storage.preallocate(0, size)


def lay_sparse(
    storage: Storage,
    size: int,
    descriptor: bytes = b"",
    *,
    zeroed_grain: bool = False,
    stream: bool = False,
) -> None:
    """Write an empty sparse extent, with the descriptor of its disk where that is inside."""
    header = Header(size)
    header.descriptor_offset, header.descriptor_size = 1, _DESCRIPTOR_SECTORS
    if len(descriptor) > _DESCRIPTOR_SECTORS * SECTOR:
        raise InvalidValueError("the names are too long for a VMDK descriptor")
    grain = header.grain // SECTOR
    at = 1 + _DESCRIPTOR_SECTORS
    if zeroed_grain:
        header.version, header.flags = 2, header.flags | ZERO_GRAINS
    if stream:
        header.version, header.flags = 3, LINE_ENDS_VALID | COMPRESSED | MARKERS
        header.overhead = -(-at // grain) * grain
        storage.truncate(header.overhead * SECTOR)
        storage.write(header.overhead * SECTOR, trailer(header, header.overhead * SECTOR, {}))
        storage.write(SECTOR, descriptor)
        storage.write(0, front(header))
        return
    table = header.per_table * 4 // SECTOR
    directory = max(1, -(-header.tables * 4 // SECTOR))
    header.flags |= REDUNDANT
    header.redundant = at
    header.directory = at + directory + header.tables * table
    end = header.directory + directory + header.tables * table
    header.overhead = -(-end // grain) * grain
    storage.truncate(header.overhead * SECTOR)
    for start in (header.redundant, header.directory):
        first = start + directory
        sectors = range(first, first + header.tables * table, table)
        storage.write(start * SECTOR, sector_numbers(sectors))
    storage.write(SECTOR, descriptor)
    storage.write(0, header.to_bytes())
