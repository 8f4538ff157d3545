"""What `qemu-img --output json` says of images, with its names: what other programs parse.

The names are those of QAPI (qapi/block-core.json: ImageInfo, ImageCheck, MapEntry); what
stands where, and what is left out, is what qemu-img 7.2 does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ringzero.disk.contract import CheckReport, DiskInfo, Extent, Kind, Snapshot
from ringzero.disk.formatnames import qemu_format_name

# The formats of which it tells facts (ImageInfoSpecific), and those whose clusters it counts.
_SPECIFIC = ("qcow2", "vmdk")
_COUNTED = ("qcow2", "qed", "parallels")
# Formats in which what reads as zeroes is no data, though it may have a place.
_ZEROES = ("raw", "qcow2")
_SECOND = 10**9


def chain(layers: Sequence[DiskInfo], filename: str) -> list[dict[str, Any]]:
    """Return ImageInfo for each of an image's layers; `filename` is the first as it was given."""
    found = []
    for layer in layers:
        info = describe(layer, filename)
        found.append(info)
        filename = info.get("full-backing-filename", filename)
    return found


def describe(info: DiskInfo, filename: str) -> dict[str, Any]:
    """Return ImageInfo for one layer."""
    plain: dict[str, Any] = {
        "virtual-size": info.virtual_size,
        "filename": filename,
        "format": qemu_format_name(info.format),
        "actual-size": info.actual_size,
        "dirty-flag": info.dirty,
    }
    if info.cluster_size:
        plain["cluster-size"] = info.cluster_size
    if info.backing_filename:
        plain["backing-filename"] = info.backing_filename
        plain["full-backing-filename"] = beside(filename, info.backing_filename)
        if info.backing_format:
            plain["backing-filename-format"] = qemu_format_name(info.backing_format)
    if info.snapshots:
        plain["snapshots"] = [_snapshot(one) for one in info.snapshots]
    if info.format in _SPECIFIC:
        data = dict(info.specific)
        if "extents" in data:
            directory = os.path.dirname(os.path.abspath(filename))  # noqa: PTH100, PTH120 - names
            data["extents"] = [
                # Names as the image's own was given, and not where that leads.
                extent
                | {"filename": beside(filename, os.path.relpath(extent["filename"], directory))}
                for extent in data["extents"]
            ]
        plain["format-specific"] = {"type": plain["format"], "data": data}
    return plain


def check(filename: str, format: str, report: CheckReport) -> dict[str, Any]:
    """Return ImageCheck."""
    counts = {
        "corruptions": report.errors - report.errors_fixed,
        "corruptions-fixed": report.errors_fixed,
        "leaks": report.leaks - report.leaks_fixed,
        "leaks-fixed": report.leaks_fixed,
    }
    if format in _COUNTED:
        counts |= {
            "image-end-offset": report.image_end,
            "total-clusters": report.total_clusters,
            "allocated-clusters": report.allocated_clusters,
            "fragmented-clusters": report.fragmented_clusters,
            "compressed-clusters": report.compressed_clusters,
        }
    return {
        "filename": filename,
        "format": qemu_format_name(format),
        "check-errors": 0,
        **{name: count for name, count in counts.items() if count},
    }


def map_entry(extent: Extent, format: str) -> dict[str, Any]:
    """Return MapEntry, without the name of the file, which qemu-img leaves out.

    What other formats than raw and qcow2 have a place for is data, be it a hole of the host's.
    """
    plain: dict[str, Any] = {
        "start": extent.offset,
        "length": extent.length,
        "depth": extent.depth,
        "present": extent.kind is not Kind.ABSENT,
        "zero": extent.reads_zero,
        "data": not extent.reads_zero or (extent.host is not None and format not in _ZEROES),
    }
    if extent.host is not None:
        plain["offset"] = extent.host
    return plain


def beside(filename: str, name: str) -> str:
    """Return a name that is written in the image `filename`, from where that is given."""
    if name.startswith("json:") or ":" in name.split("/", 1)[0]:
        return name
    directory, slash, _ = filename.rpartition("/")
    return name if name.startswith("/") else f"{directory}{slash}{name}"


def _snapshot(one: Snapshot) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "id": one.id,
        "name": one.name,
        "vm-state-size": one.vm_state,
        "date-sec": one.date,
        "date-nsec": one.date_ns,
        "vm-clock-sec": one.vm_clock // _SECOND,
        "vm-clock-nsec": one.vm_clock % _SECOND,
    }
    if one.icount is not None:
        plain["icount"] = one.icount
    return plain
