"""Laying an empty qcow2 image: header, refcount table, refcount blocks, L1 table."""

from __future__ import annotations

import struct
from array import array

from ringzero.disk.contract import Option, Options
from ringzero.disk.filenames import name_to_write
from ringzero.disk.formats.qcow2.header import (
    COMPRESSION_TYPE,
    COMPRESSIONS,
    EXTENDED_L2,
    EXTERNAL_DATA,
    LAZY_REFCOUNTS,
    MAX_L1_BYTES,
    MAX_REFTABLE_BYTES,
    RAW_EXTERNAL,
    Header,
)
from ringzero.disk.formats.qcow2.refcounts import PackedTable
from ringzero.disk.storage import Storage
from ringzero.disk.tables import Table
from ringzero.errors import InvalidValueError
from ringzero.units import KIB

_VERSIONS = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}

CREATE_OPTIONS = (
    Option.choice("compat", tuple(_VERSIONS), "1.1", "version: 0.10 is 2, 1.1 is 3"),
    Option.size("cluster_size", 64 * KIB, "bytes in a cluster, a power of two, 512 to 2M"),
    Option("refcount_bits", int, 16, "width of a refcount in bits: 1, 2, 4, 8, 16, 32 or 64"),
    Option.flag("lazy_refcounts", False, "note in the image that refcounts may be postponed"),
    Option.choice("compression_type", COMPRESSIONS, "zlib", "how clusters are compressed"),
    Option.flag("extended_l2", False, "32 subclusters in a cluster"),
    Option("data_file", str, None, "keep the data in this other file"),
    Option.flag("data_file_raw", False, "keep the data file readable as a raw image"),
    Option.choice(
        "preallocation", ("off", "metadata", "falloc", "full"), "off", "reserve the space at once"
    ),
)


def make_header(size: int, options: Options, backing: tuple[str, str] | None) -> Header:
    """Return the header for an image with these options; InvalidValueError when they clash."""
    version = _VERSIONS[options["compat"]]
    cluster_size, refcount_bits = options["cluster_size"], options["refcount_bits"]
    if cluster_size not in [1 << bits for bits in range(9, 22)]:
        raise InvalidValueError(
            f"cluster_size {cluster_size} is not possible", hint="a power of two, 512 to 2M"
        )
    if refcount_bits not in [1 << order for order in range(7)]:
        raise InvalidValueError(
            f"refcount_bits {refcount_bits} is not possible", hint="1, 2, 4, 8, 16, 32 or 64"
        )
    header = Header(version, cluster_size.bit_length() - 1, size)
    header.refcount_order = refcount_bits.bit_length() - 1
    wanted = {
        "lazy_refcounts": options["lazy_refcounts"],
        "extended_l2": options["extended_l2"],
        "data_file": options["data_file"],
        "compression_type": options["compression_type"] != "zlib",
        "refcount_bits": refcount_bits != 16,
    }
    if version == 2 and any(wanted.values()):
        name = next(name for name, value in wanted.items() if value)
        raise InvalidValueError(f"{name} needs compat=1.1", hint="leave compat at its default")
    if options["lazy_refcounts"]:
        header.compatible |= LAZY_REFCOUNTS
    if options["compression_type"] != "zlib":
        header.incompatible |= COMPRESSION_TYPE
        header.compression = options["compression_type"]
    if options["extended_l2"]:
        if cluster_size < 16 * KIB:
            raise InvalidValueError("extended_l2 needs a cluster_size of 16K at least")
        header.incompatible |= EXTENDED_L2
    if options["data_file"]:
        header.incompatible |= EXTERNAL_DATA
        header.data_file = name_to_write(options["data_file"])
    if options["data_file_raw"]:
        if not options["data_file"] or backing:
            raise InvalidValueError("data_file_raw needs a data_file and no backing file")
        header.autoclear |= RAW_EXTERNAL
    if backing and options["preallocation"] != "off":
        raise InvalidValueError("an overlay is not preallocated: it would hide its backing file")
    if backing:
        header.backing_name, header.backing_format = backing
    header.l1_size = header.l1_needed(size)
    if header.l1_size * 8 > MAX_L1_BYTES:
        raise InvalidValueError(
            f"{size} bytes are too many for clusters of {cluster_size} bytes",
            hint="use a larger cluster_size",
        )
    return header


def lay_out(storage: Storage, header: Header) -> None:
    """Write an empty image. Fills in the offsets in `header`."""
    size = header.cluster_size
    l1_clusters = max(1, -(-header.l1_size * 8 // size))
    reftable, blocks = plan_refcounts(header, 1 + l1_clusters)
    header.reftable_offset = size
    header.reftable_clusters = reftable
    header.l1_offset = (1 + reftable + blocks) * size
    used = 1 + reftable + blocks + l1_clusters
    storage.reach(used * size)
    if storage.is_device:
        # It is full of old bytes.
        storage.write_zeroes(header.l1_offset, l1_clusters * size)
    write_refcounts(storage, header, [1] * used, 1, (reftable, blocks))
    storage.flush()
    header.write(storage)


def plan_refcounts(header: Header, others: int) -> tuple[int, int]:
    """Return (clusters of the refcount table, refcount blocks) for `others` more clusters."""
    size = header.cluster_size
    per_block = size * 8 // header.refcount_bits
    reftable = blocks = 1
    while True:
        need_blocks = max(1, -(-(others + reftable + blocks) // per_block))
        need_table = max(1, -(-need_blocks * 8 // size))
        if need_table * size > MAX_REFTABLE_BYTES:
            raise InvalidValueError("the image is too large for its clusters and refcounts")
        if need_blocks <= blocks and need_table <= reftable:
            return reftable, blocks
        blocks, reftable = max(blocks, need_blocks), max(reftable, need_table)


def write_refcounts(
    storage: Storage, header: Header, counts: list[int], first: int, plan: tuple[int, int]
) -> None:
    """Write a refcount table at cluster `first` and its blocks behind it, holding `counts`.

    `plan` is what `plan_refcounts` gave.
    """
    reftable, blocks = plan
    size = header.cluster_size
    per_block = size * 8 // header.refcount_bits
    start = (first + reftable) * size
    codes = {8: "B", 16: "H", 32: "I", 64: "Q"}
    for number in range(blocks):
        part = counts[number * per_block : (number + 1) * per_block]
        offset = start + number * size
        if header.refcount_bits < 8:
            block: Table = PackedTable.blank_packed(
                storage, offset, per_block, header.refcount_bits
            )
        else:
            code = codes[header.refcount_bits]
            block = Table.blank(storage, offset, per_block, code, big_endian=True)
        block.items[: len(part)] = array(block.items.typecode, part)
        block.write_back()
    entries = struct.pack(f">{blocks}Q", *range(start, start + blocks * size, size))
    storage.write(first * size, entries.ljust(reftable * size, b"\0"))
