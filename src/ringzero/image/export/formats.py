"""Exporting an image of the store: into which format, and by which steps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ringzero.errors import InvalidValueError
from ringzero.host.files import PARTIAL, atomic_file, host_error
from ringzero.host.progress import QUIET, Progress
from ringzero.image.export import kit
from ringzero.image.export.appliance import Appliance, write_box, write_ova
from ringzero.image.export.disk import BootableDisk
from ringzero.image.oci.store import StoredImage
from ringzero.records import record
from ringzero.units import GIB

# Disks as they are, by our format and its options: of VMDK, the controller that VMware has.
_DISKS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "raw": ("raw", {}),
    "qcow2": ("qcow2", {}),
    "vmdk": ("vmdk", {"adapter_type": "lsilogic"}),
    "vhd": ("vhd", {}),
    "vhdx": ("vhdx", {}),
    "vdi": ("vdi", {}),
}
_STREAM = ("vmdk", {"subformat": "streamOptimized", "adapter_type": "lsilogic"})
# Of the disks of imported machines in the store.
_STORED = "qcow2"
FORMATS = (*_DISKS, "ova", "box")
PROVIDERS = ("libvirt", "virtualbox")
_SUFFIXES = {"img": "raw", "raw": "raw", "vpc": "vhd"}
_MEMORY = 1 * GIB


@record
class Wishes:
    """What an exported machine shall have; None: what the image says, or what it needs.

    `size` and `memory` are in bytes. `provider` is for whom a box is.
    """

    size: int | None = None
    memory: int | None = None
    cpus: int | None = None
    provider: str = PROVIDERS[0]
    overwrite: bool = False
    refresh: bool = False


def by_name(path: str) -> str | None:
    """Return the format that a file's suffix means; None for that of no disk."""
    suffix = path.rpartition("/")[2].rpartition(".")[2].lower()
    return _SUFFIXES.get(suffix, suffix if suffix in FORMATS else None)


def export(
    image: StoredImage,
    target: Path,
    kind: str,
    wishes: Wishes,
    *,
    cache: Path,
    progress: Progress = QUIET,
) -> int:
    """Write an image into a file that boots by itself; return its disk's size in bytes.

    Raises InvalidValueError for a target that is there, GuestImageError, HostError, DiskError.
    """
    if target.exists() and not wishes.overwrite:
        raise InvalidValueError(f"{target} exists", hint="choose another name, or say --force")
    if not target.absolute().parent.is_dir():
        raise InvalidValueError(f"{target.absolute().parent} is no directory")
    if image.disks:
        return _export_imported(image, target, kind, wishes, progress)
    found = kit.ensure(cache, progress, refresh=wishes.refresh)
    disk = BootableDisk(image, found, cache, wishes.size)
    about = _about(image, wishes, disk.size)
    try:
        if kind == "raw":
            with atomic_file(target) as file:
                disk.write(file, progress)
            return disk.size
        # Beside the target: both are as large as one disk holds.
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=target.absolute().parent) as place:
            work = Path(place)
            with (work / "raw").open("wb") as file:
                disk.write(file, progress)
            if kind in _DISKS:
                _convert(work / "raw", target, _DISKS[kind], progress, overwrite=wishes.overwrite)
            else:
                _pack(kind, wishes.provider, about, work / "raw", work, target, progress)
    except OSError as fault:
        raise host_error(fault, "write", target) from fault
    return disk.size


def _export_imported(
    image: StoredImage, target: Path, kind: str, wishes: Wishes, progress: Progress
) -> int:
    """Write the disk of an imported machine, which boots as it is; return its size in bytes."""
    from ringzero.disk.opening import open_disk

    if len(image.disks) > 1:
        raise InvalidValueError(
            f"{image.name} has {len(image.disks)} disks, and one is written",
            hint=f"`ringzero disk convert` takes each: {image.disks[0]} ...",
        )
    if wishes.size is not None:
        raise InvalidValueError(
            "the disk of an imported machine keeps its size",
            hint=f"`ringzero disk resize {target} SIZE` afterwards",
        )
    with open_disk(image.root, _STORED, read_only=True, backing=False) as disk:
        size = disk.size
    try:
        if kind in _DISKS:
            _convert(image.root, target, _DISKS[kind], progress, overwrite=wishes.overwrite)
            return size
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=target.absolute().parent) as place:
            about, work = _about(image, wishes, size), Path(place)
            _pack(kind, wishes.provider, about, image.root, work, target, progress)
    except OSError as fault:
        raise host_error(fault, "write", target) from fault
    return size


def _about(image: StoredImage, wishes: Wishes, size: int) -> Appliance:
    """Return what an archive says of the machine whose disk has `size` bytes."""
    return Appliance(
        _stem(image),
        wishes.cpus or image.machine.cpus or 1,
        wishes.memory or image.machine.memory or _MEMORY,
        size,
    )


def _pack(
    kind: str,
    provider: str,
    about: Appliance,
    source: Path,
    work: Path,
    target: Path,
    progress: Progress,
) -> None:
    """Make an archive of a disk, and of what tells of its machine; one that lies in `work` goes."""
    libvirt = kind == "box" and provider == "libvirt"
    disk = work / ("disk.qcow2" if libvirt else "disk.vmdk")
    _convert(source, disk, _DISKS["qcow2"] if libvirt else _STREAM, progress)
    if source.parent == work:
        source.unlink()
    with progress.step(f"packing {target.name}"), atomic_file(target) as file:
        if kind == "ova":
            write_ova(about, disk, about.name, file)
        else:
            write_box(provider, about, disk, file)


def _convert(
    source: Path,
    target: Path,
    how: tuple[str, Mapping[str, Any]],
    progress: Progress,
    *,
    overwrite: bool = False,
) -> None:
    from ringzero.disk.convert import Conversion
    from ringzero.disk.opening import open_disk

    name, options = how
    stored = _STORED if source.suffix == f".{_STORED}" else "raw"
    with (
        open_disk(source, stored, read_only=True, backing=False) as disk,
        progress.step(f"writing {target.name}") as step,
    ):
        size = disk.size

        def tell(done: int) -> None:
            step.update(done / size)

        told: Callable[[int], None] = tell
        work = Conversion(target, name, options, overwrite=overwrite, on_progress=told)
        work.compress = name == "vmdk" and options.get("subformat") == "streamOptimized"
        work.run(disk)


def _stem(image: StoredImage) -> str:
    """Return an image's name as one of a file, without registry and tag."""
    name = image.name.rpartition("/")[2].partition("@")[0].partition(":")[0]
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name).strip("-") or "image"
