"""Layers of a chain that is in use: finding one, and having one open for writing.

A layer below the top is open read-only, and one file must not be changed through two
objects, each with tables of its own in memory. So the layer is exchanged for one that is
open for writing, inside the chain, while no request is in flight. Its old object is open
until the new one has its locks, so that a failure changes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from ringzero.disk.contract import Disk
from ringzero.disk.instant import LiveDisk
from ringzero.disk.opening import open_disk
from ringzero.disk.storage import FileStorage
from ringzero.errors import DiskUnsupportedError, InvalidValueError, NotFoundError

# Formats of overlays that name the file below by its name alone, and of files below them that
# nobody knows by a number which changes with their content.
_OVERLAYS = ("qcow2",)
_BASES = ("qcow2", "raw")


def find_layer(chain: list[Disk], wanted: str) -> int:
    """Return which layer of `chain` the file `wanted` is; NotFoundError when none is."""
    path = Path(wanted)
    for number, layer in enumerate(chain):
        if layer.path is None:
            continue
        if layer.path == path or (path.exists() and layer.path.samefile(path)):
            return number
    raise NotFoundError(
        f"{wanted} is no layer of the disk",
        hint="its layers: " + ", ".join(str(layer.path or layer.format) for layer in chain),
    )


def require_overlay(layer: Disk) -> None:
    """Raise DiskUnsupportedError for a layer that cannot be given another backing file here."""
    if layer.format not in _OVERLAYS or layer.path is None:
        raise DiskUnsupportedError(
            f"{layer.path or layer.format} is {layer.format}: only qcow2 overlays can be changed "
            "while they are in use",
            hint="mirror the disk to a new image, or use `ringzero disk commit` or `rebase` "
            "when the machine is off",
        )


def require_base(layer: Disk) -> None:
    """Raise DiskUnsupportedError for a layer that cannot be written to while it is read."""
    if layer.format not in _BASES or type(_storage(layer)) is not FileStorage:
        raise DiskUnsupportedError(
            f"{layer.path or layer.format} cannot be written to while it is a backing file",
            hint="that is done for qcow2 and raw images in one file",
        )


def reopen(live: LiveDisk, above: Disk, layer: Disk, *, read_only: bool = False) -> Disk:
    """Exchange `layer`, which lies below `above` in `live`, for one that is open the other way.

    No request is in flight. Return the new one. Raises DiskLockedError, DiskReadOnlyError and
    what else opening raises, and then has changed nothing.
    """
    require_base(layer)
    old = _storage(layer)
    assert layer.path is not None
    assert isinstance(old, FileStorage)
    fresh = open_disk(layer.path, layer.format, read_only=read_only, backing=False, lock=False)
    try:
        storage = _storage(fresh)
        assert isinstance(storage, FileStorage)
        if not _is_same(old, storage):
            raise InvalidValueError(f"{layer.path} is another file by now")
        old.unlock()
        try:
            storage.lock()
        except BaseException:
            storage.unlock()
            old.lock()
            raise
    except BaseException:
        fresh.close()
        raise
    fresh.backing = layer.backing
    above.backing = fresh
    live.retire([layer])
    return fresh


def name_from(overlay: Disk, base: Disk) -> str:
    """Return what `overlay` is to call `base`: relative to its own directory, where that is near.

    Raises DiskUnsupportedError for layers that have no file.
    """
    if overlay.path is None or base.path is None:
        raise DiskUnsupportedError("a layer without a file cannot be named in an image")
    directory = overlay.path.parent.resolve()
    target = base.path.parent.resolve() / base.path.name
    return target.name if target.parent == directory else str(target)


def _storage(layer: Disk) -> object:
    return getattr(layer, "storage", None)


def _is_same(one: FileStorage, other: FileStorage) -> bool:
    a, b = os.fstat(one.fd), os.fstat(other.fd)
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
