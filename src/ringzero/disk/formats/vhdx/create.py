"""Laying an empty VHDX image: file identifier, headers, region tables, log, metadata, BAT."""

from __future__ import annotations

import uuid

from ringzero.disk.contract import Option, Options
from ringzero.disk.formats.vhdx.structures import (
    HEADER_OFFSETS,
    MAX_BLOCK,
    MAX_SIZE,
    MIN_BLOCK,
    NIL,
    REGION_OFFSETS,
    SIGNATURE,
    Header,
    Metadata,
    Region,
    region_table,
)
from ringzero.disk.storage import Storage
from ringzero.errors import InvalidValueError
from ringzero.units import GIB, MIB, TIB

CREATE_OPTIONS = (
    Option.choice("subformat", ("dynamic", "fixed"), "dynamic", "grow as needed or not"),
    Option.size("block_size", 0, "bytes in a block, a power of two, 1M to 256M (0: by the size)"),
    Option.size("log_size", MIB, "bytes of the log, a multiple of 1M"),
    Option.size("logical_sector_size", 512, "what the guest sees as a sector: 512 or 4096"),
    Option.choice("preallocation", ("off", "falloc", "full"), "off", "for subformat=fixed"),
)

_MAX_LOG = 256 * MIB


def default_block(size: int) -> int:
    """Return the block size that suits a disk of `size` bytes: tables stay small, blocks too."""
    for limit, block in ((32 * TIB, 64), (100 * GIB, 32), (GIB, 16)):
        if size > limit:
            return block * MIB
    return 8 * MIB


def make_metadata(size: int, options: Options, locator: dict[str, str] | None) -> Metadata:
    """Return the metadata of a new image; InvalidValueError."""
    sector = options["logical_sector_size"]
    # A differencing image takes space by the block and copies nothing: small ones do.
    block = options["block_size"] or (2 * MIB if locator else default_block(size))
    if sector not in (512, 4096):
        raise InvalidValueError(f"logical_sector_size {sector}: VHDX knows 512 and 4096")
    if not MIN_BLOCK <= block <= MAX_BLOCK or block & (block - 1):
        raise InvalidValueError(
            f"block_size {block} is not possible", hint="a power of two, 1M to 256M"
        )
    size = -(-size // sector) * sector
    if size > MAX_SIZE:
        raise InvalidValueError(f"{size} bytes: a VHDX disk has 64T at most")
    if not 0 < options["log_size"] <= _MAX_LOG or options["log_size"] % MIB:
        raise InvalidValueError("log_size must be a multiple of 1M, up to 256M")
    fixed = options["subformat"] == "fixed"
    if fixed and locator:
        raise InvalidValueError("a fixed image has no backing file")
    if options["preallocation"] != "off" and not fixed:
        raise InvalidValueError("preallocation needs subformat=fixed")
    return Metadata(
        block, size, logical_sector=sector, leave_allocated=fixed,
        has_parent=locator is not None, locator=locator or {},
    )  # fmt: skip


def lay_out(storage: Storage, metadata: Metadata, log_size: int) -> Region:
    """Write an image whose BAT is all zero; return where the BAT is."""
    identifier = SIGNATURE + "ringzero".encode("utf-16-le")
    log = Region(MIB, log_size)
    place = Region(log.end, MIB)
    bat = Region(place.end, max(1, -(-metadata.bat_entries() * 8 // MIB)) * MIB)
    storage.truncate(bat.end)
    storage.write(0, identifier)
    storage.write(place.offset, metadata.to_bytes())
    for at in REGION_OFFSETS:
        storage.write(at, region_table(bat, place))
    header = Header(0, uuid.uuid4(), uuid.uuid4(), NIL, log.length, log.offset)
    # Two flushes, because the second header must not be torn with the first.
    for _ in HEADER_OFFSETS:
        header.write(storage)
    return bat
