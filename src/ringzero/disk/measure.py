"""How large an image file will be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ringzero.disk.contract import Disk, Options
from ringzero.disk.copying import stored, unit_of_data
from ringzero.disk.opening import create_disk, open_disk
from ringzero.disk.registry import FORMATS
from ringzero.errors import InvalidValueError
from ringzero.records import record

# Of a bitmap's entry in the directory, without its name, in bytes.
BITMAP_ENTRY = 24

# Some formats write the names of an image's files into it. As long as it may be, with the number
# of a part and the suffix behind it.
_LONG_NAME = "m" * 230


@record
class Measure:
    """Bytes for what the source holds now (`required`), and when all is written.

    `bitmaps` is what the source's bitmaps would take more, which `convert` leaves behind; None
    where source or target has none by its format.
    """

    required: int
    fully_allocated: int
    bitmaps: int | None = None


def measure(
    format: str,
    size: int,
    source: Disk | None = None,
    options: Mapping[str, Any] | None = None,
) -> Measure:
    """Return the size of an image of `size` bytes with the contents of `source`, at most.

    `convert` never writes more. An empty image is made to see what the format itself takes;
    space that the options reserve is not reserved, but counted.
    """
    given = dict(options or {})
    # What makes no sense is said before it is left out.
    Options(FORMATS.get(format).create_options, given, f"format {format}")
    reserved = given.get("preallocation", "off") != "off"
    if reserved:
        given["preallocation"] = "off"
    if given.get("data_file"):
        given["data_file"] = "data"
    with TemporaryDirectory(prefix="ringzero-") as directory:
        path = Path(directory) / _LONG_NAME
        create_disk(path, format, size, options=given, sync=False)
        empty = sum(file.stat().st_size for file in Path(directory).iterdir())
        with open_disk(path, format, sync=False) as disk:
            unit = unit_of_data(disk)
            full = empty + disk.room_for([(0, disk.size)] if size else [])
            bitmaps = None
            if disk.info().specific.get("compat") == "1.1" and source is not None:
                bitmaps = _bitmaps(source, disk.cluster_size or 1)
            if reserved:
                return Measure(full, full, bitmaps)
            return Measure(empty + disk.room_for(_data(source, unit, disk.size)), full, bitmaps)


def _bitmaps(source: Disk, cluster_size: int) -> int | None:
    """Return what the bitmaps of a qcow2 image take in another one (qcow2, "Bitmaps")."""
    facts = source.info().specific
    if facts.get("compat") != "1.1":
        return None
    room = directory = 0
    for bitmap in facts.get("bitmaps", ()):
        bits = -(-source.size // bitmap["granularity"])
        clusters = -(-bits // (8 * cluster_size))
        # The clusters, and the table that names them.
        room += (clusters - clusters * 8 // -cluster_size) * cluster_size
        directory += -(-(BITMAP_ENTRY + len(bitmap["name"].encode())) // 8) * 8
    return room - directory // -cluster_size * cluster_size


def _data(source: Disk | None, unit: int, end: int) -> list[tuple[int, int]]:
    """Return (offset, length) of the units that hold data, those that touch joined."""
    found: list[tuple[int, int]] = []
    for offset, length, _ in stored(source, 0, source.size) if source is not None else ():
        low = offset // unit * unit
        high = min(-(-(offset + length) // unit) * unit, end)
        if found and low <= found[-1][0] + found[-1][1]:
            found[-1] = found[-1][0], max(high - found[-1][0], found[-1][1])
        elif low < high:
            found.append((low, high - low))
    return found


def wanted_size(source: Disk | None, size: int | None) -> int:
    """Return the size to measure for: what is given, or the source's."""
    if size is not None and source is not None:
        raise InvalidValueError("--size is for an image that is not there yet")
    if size is not None:
        return size
    if source is None:
        raise InvalidValueError("nothing to measure", hint="name an image, or give --size")
    return source.size
