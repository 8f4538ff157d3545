"""In what two snapshots differ."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringzero.vm.saved import blobs
from ringzero.vm.saved.snapshot import Snapshot


def difference(first: Snapshot, second: Snapshot) -> dict[str, Any]:
    """Return in what two snapshots differ, as JSON-ready values. Raises StateError, HostError."""
    one, two = first.manifest, second.manifest
    fields = sorted({*one.config, *two.config})
    return {
        "seconds": (two.taken - one.taken) / 1e9,
        "config": {
            field: [one.config.get(field), two.config.get(field)]
            for field in fields
            if one.config.get(field) != two.config.get(field)
        },
        "devices": _devices(first, second),
        "memory": _memory(first, second),
        "disks": [
            _blob_difference(first.blob(a.blob), second.blob(b.blob))
            for a, b in zip(one.disks, two.disks, strict=False)
            if a.blob is not None and b.blob is not None
        ],
    }


def _devices(first: Snapshot, second: Snapshot) -> list[str]:
    """Return the names of the devices (and vCPUs, as `cpus`) whose states differ."""
    one, two = first.state(), second.state()
    trees = [dict(s.parts.get("devices", {})) if s is not None else {} for s in (one, two)]
    names = {name for name in {*trees[0], *trees[1]} if trees[0].get(name) != trees[1].get(name)}
    if one is not None and two is not None and one.parts.get("cpus") != two.parts.get("cpus"):
        names.add("cpus")
    return sorted(names)


def _memory(first: Snapshot, second: Snapshot) -> dict[str, int] | None:
    if first.manifest.memory is None or second.manifest.memory is None:
        return None
    one, two = first.memory(), second.memory()
    try:
        size = max(one.size, two.size)
        return _count(size, lambda: blobs.memory_blocks(one), lambda: blobs.memory_blocks(two))
    finally:
        one.close()
        two.close()


def _blob_difference(first: Path, second: Path) -> dict[str, int]:
    if first == second:
        return {"pages": 0, "bytes": 0}
    with first.open("rb") as one, second.open("rb") as two:
        sizes = [os.fstat(file.fileno()).st_size for file in (one, two)]
        return _count(
            max(sizes),
            lambda: blobs.file_blocks(one.fileno(), sizes[0]),
            lambda: blobs.file_blocks(two.fileno(), sizes[1]),
        )


def _count(
    size: int, one: Callable[[], blobs.Blocks], two: Callable[[], blobs.Blocks]
) -> dict[str, int]:
    lengths = [len(page) for _, page in blobs.differences(size, one(), two())]
    return {"pages": len(lengths), "bytes": sum(lengths)}
