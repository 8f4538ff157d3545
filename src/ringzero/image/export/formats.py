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
    found = kit.ensure(cache, progress, refresh=wishes.refresh)
    disk = BootableDisk(image, found, cache, wishes.size)
    about = Appliance(
        _stem(image),
        wishes.cpus or image.machine.cpus or 1,
        wishes.memory or image.machine.memory or _MEMORY,
        disk.size,
    )
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
                _pack(kind, wishes.provider, about, work, target, progress)
    except OSError as fault:
        raise host_error(fault, "write", target) from fault
    return disk.size


def _pack(
    kind: str, provider: str, about: Appliance, work: Path, target: Path, progress: Progress
) -> None:
    """Make an archive of a disk, and of what tells of its machine."""
    libvirt = kind == "box" and provider == "libvirt"
    disk = work / ("disk.qcow2" if libvirt else "disk.vmdk")
    _convert(work / "raw", disk, _DISKS["qcow2"] if libvirt else _STREAM, progress)
    (work / "raw").unlink()
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
    with (
        open_disk(source, "raw", read_only=True) as disk,
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
