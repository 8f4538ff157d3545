"""How large an image file will be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ringzero.disk.contract import Disk
from ringzero.disk.opening import create_disk, open_disk
from ringzero.errors import InvalidValueError
from ringzero.records import record
from ringzero.units import KIB


@record
class Measure:
    """Bytes for what the source holds now (`required`), and when all is written."""

    required: int
    fully_allocated: int


def measure(
    format: str,
    size: int,
    source: Disk | None = None,
    options: Mapping[str, Any] | None = None,
) -> Measure:
    """Return the size of an image of `size` bytes with the contents of `source`.

    An empty image is made to see what the format itself takes.
    """
    with TemporaryDirectory(prefix="ringzero-") as directory:
        path = Path(directory) / "measured"
        create_disk(path, format, size, options=options, sync=False)
        empty = sum(file.stat().st_size for file in Path(directory).iterdir())
        with open_disk(path, format, read_only=True, sync=False) as disk:
            cluster = disk.cluster_size
    if format == "raw":
        return Measure(sum(length for _, length in _data(source, 4 * KIB)), size)
    if cluster is None or empty >= size:
        return Measure(empty, empty)
    clusters = sum(length for _, length in _data(source, cluster)) // cluster
    whole = -(-size // cluster)
    return Measure(
        empty + _with_tables(format, clusters, cluster, options),
        empty + _with_tables(format, whole, cluster, options),
    )


def _data(source: Disk | None, unit: int) -> list[tuple[int, int]]:
    """Return (offset, length) of the units that hold data, those that touch joined."""
    found: list[tuple[int, int]] = []
    for extent in source.block_status() if source is not None else ():
        if extent.reads_zero:
            continue
        low = extent.offset // unit * unit
        high = -(-(extent.offset + extent.length) // unit) * unit
        if found and low <= found[-1][0] + found[-1][1]:
            found[-1] = found[-1][0], max(high - found[-1][0], found[-1][1])
        else:
            found.append((low, high - low))
    return found


def _with_tables(
    format: str,
    clusters: int,
    size: int,
    options: Mapping[str, Any] | None,
) -> int:
    """Return the bytes of so many clusters and of the tables that grow with them."""
    if format != "qcow2":
        return clusters * size
    given = options or {}
    width = 16 if given.get("extended_l2") in ("on", True) else 8
    tables = -(-clusters * width // size)
    per_block = size * 8 // int(given.get("refcount_bits", 16))
    blocks = max(0, -(-(clusters + tables) // per_block) - 1)
    return (clusters + tables + blocks) * size


def wanted_size(source: Disk | None, size: int | None) -> int:
    """Return the size to measure for: what is given, or the source's."""
    if size is not None:
        return size
    if source is None:
        raise InvalidValueError("nothing to measure", hint="name an image, or give --size")
    return source.size
