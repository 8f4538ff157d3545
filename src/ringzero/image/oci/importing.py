"""Bringing a machine of another system, a disk image or a tar of files into the store.

    an OVA, OVF, box, .vmx, .vbox       its disks, with memory, CPUs and network interfaces
    a disk image                        one disk
    a tar of a root file system         an image of containers with one layer

A file may be compressed as a whole. Disks become whole qcow2 images, packed by zstd; equal content
makes equal bytes. Nothing of an archive is unpacked to a name of its own.
"""

from __future__ import annotations

import hashlib
import json
import stat
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ringzero.disk.contract import Disk
from ringzero.disk.convert import Conversion
from ringzero.disk.measure import measure
from ringzero.errors import (
    FileSystemError,
    GuestImageError,
    InvalidValueError,
    NotFoundError,
)
from ringzero.host.files import PARTIAL, host_error, make_directory
from ringzero.host.progress import QUIET, Progress
from ringzero.image.appliance.descriptions import Appliance
from ringzero.image.appliance.opening import disks_of
from ringzero.image.bootable import examine
from ringzero.image.layers import tar
from ringzero.image.layers.plain import map_whole
from ringzero.image.machinespec import MEMBER, MOST_CPUS, MOST_NICS, MachineSpec
from ringzero.image.oci.loading import ARCHIVE_LIST, LAYOUT_INDEX, plain
from ringzero.image.oci.machinedisks import FORMAT
from ringzero.image.oci.made import Made, put
from ringzero.image.oci.manifest import (
    DISK_ARTIFACT,
    DISK_CONFIG,
    DISK_LAYER,
    MAX_DISKS,
    OCI_LAYER,
    Descriptor,
)
from ringzero.image.oci.reference import Reference
from ringzero.image.oci.store import StoredImage
from ringzero.records import record
from ringzero.settings import IMAGE_LIMIT
from ringzero.units import format_size

_PIECE = 1 << 20
# Descriptions and boxes are looked into as they are: what they name is beside them, or packed.
_AS_THEY_ARE = (".ovf", ".vmx", ".vbox", ".box")
# Files of an archive that are looked at to see what it is.
_MOST_MEMBERS = 1000
# Of x86 machines alone, as ours are.
_ARCHITECTURE = "amd64"
_SHELLS = (b"bin/sh", b"usr/bin/sh")


@record
class Imported:
    """An image of the store, and what its user should know of it."""

    image: StoredImage
    notes: tuple[str, ...] = ()


def import_file(
    path: Path,
    names: Sequence[Reference],
    *,
    cache: Path,
    memory: int | None = None,
    cpus: int | None = None,
    progress: Progress = QUIET,
) -> Imported:
    """Bring a file into the store, and let `names` stand for it.

    `memory`, in bytes, and `cpus` stand for what the file says. Raises InvalidValueError for an
    archive of images, GuestImageError, DiskError, HostError.
    """
    _refuse_special(path)
    # What a killed one leaves there goes when later ones come.
    where = make_directory(cache / "images")
    with tempfile.TemporaryDirectory(dir=where, prefix=PARTIAL) as folder:
        place, whole = Path(folder), path
        if path.suffix.lower() not in _AS_THEY_ARE:
            try:
                whole = plain(path, place, progress)
            except OSError as fault:
                raise host_error(fault, "read", path) from fault
            kind = _archive_kind(whole)
            if kind == "images":
                raise InvalidValueError(
                    f"{path} is an archive of images of containers",
                    hint=f"ringzero image load {path}",
                )
            if kind == "files" and path.suffix.lower() != ".ova":
                return Imported(_import_files(whole, path, names, cache, progress))
        with disks_of(whole, place) as (about, disks):
            return _import_disks(
                path, disks, _spec(about, memory, cpus), names, cache, place, progress
            )


def _refuse_special(path: Path) -> None:
    """Raise for what is neither a file nor a block device: a FIFO would be waited for."""
    try:
        mode = path.stat().st_mode
    except OSError as fault:
        raise host_error(fault, "read", path) from fault
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise GuestImageError(f"{path} is neither a file nor a block device")


def _archive_kind(path: Path) -> str:
    """Return "files" for a tar of a system's files, "images" for one of images, else "".

    An appliance is none of both, and neither is what is no tar.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            found = [member.name for member, _ in zip(archive, range(_MOST_MEMBERS), strict=False)]
    except (tarfile.TarError, ValueError, OverflowError):
        return ""
    except OSError as fault:
        raise host_error(fault, "read", path) from fault
    top = {name.removeprefix("./") for name in found}
    if ARCHIVE_LIST in top or LAYOUT_INDEX in top:
        return "images"
    appliance = "metadata.json" in top or any(
        "/" not in name and name.lower().endswith(".ovf") for name in top
    )
    # A disk that begins with zeros is a tar without members.
    return "files" if top and not appliance else ""


# ---- files ------------------------------------------------------------------


def _import_files(
    whole: Path, path: Path, names: Sequence[Reference], cache: Path, progress: Progress
) -> StoredImage:
    """Bring the tar of a system's files into the store: its one layer."""
    with progress.step(f"reading {path.name}"):
        digest, size = _digest(whole)
    with whole.open("rb") as file:
        members = {member.name.removeprefix(b"./") for member in tar.read(map_whole(file.fileno()))}
    command = {"Cmd": ["/bin/sh"]} if any(shell in members for shell in _SHELLS) else {}
    config = {
        "architecture": _ARCHITECTURE,
        "os": "linux",
        "config": command,
        "rootfs": {"type": "layers", "diff_ids": [digest]},
        "history": [{"created_by": f"IMPORT {path.name}"}],
    }
    made = Made(_packed(config), ((Descriptor(OCI_LAYER, digest, size), whole),))
    return put(made, cache=cache, names=tuple(names), progress=progress)


# ---- disks ------------------------------------------------------------------


def _import_disks(
    path: Path,
    disks: Sequence[Disk],
    spec: MachineSpec,
    names: Sequence[Reference],
    cache: Path,
    place: Path,
    progress: Progress,
) -> Imported:
    if len(disks) > MAX_DISKS:
        raise GuestImageError(f"{path} has {len(disks)} disks, more than {MAX_DISKS}")
    layers, described, notes = [], [], _bootable(disks[0])
    for number, disk in enumerate(disks, 1):
        _refuse_endless(path, disk)
        target = place / f"disk-{number}.{FORMAT}"
        with progress.step(f"importing disk {number} of {len(disks)} of {path.name}") as step:

            def tell(done: int, size: int = disk.size) -> None:
                step.update(done / size if size else None)

            work = Conversion(target, FORMAT, {"compression_type": "zstd"}, on_progress=tell)
            work.compress = True
            work.run(disk)
        digest, size = _digest(target)
        layers.append((Descriptor(DISK_LAYER, digest, size), target))
        described.append({"format": FORMAT, "size": disk.size})
    config = {
        "architecture": _ARCHITECTURE,
        "os": "" if notes else "linux",
        "config": {MEMBER: spec.plain()},
        "disks": described,
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [{"created_by": f"IMPORT {path.name}"}],
    }
    made = Made(_packed(config), tuple(layers), DISK_CONFIG, DISK_ARTIFACT)
    image = put(made, cache=cache, names=tuple(names), progress=progress)
    return Imported(image, tuple(notes))


def _refuse_endless(path: Path, disk: Disk) -> None:
    """Raise GuestImageError for a disk that holds more than an image may."""
    held, limit = measure(FORMAT, disk.size, disk).required, IMAGE_LIMIT.get()
    if held > limit:
        raise GuestImageError(
            f"{path}: a disk holds {format_size(held)}, more than {format_size(limit)}",
            hint="RINGZERO_IMAGE_LIMIT=SIZE allows more",
        )


def _bootable(disk: Disk) -> list[str]:
    """Return why a disk cannot be booted, in one line; nothing where it can be."""
    try:
        examine(disk).choose()
    except (GuestImageError, FileSystemError, NotFoundError) as fault:
        return [fault.message]
    return []


def _spec(about: Appliance, memory: int | None, cpus: int | None) -> MachineSpec:
    """Return what machines of the image have, where their flags say nothing."""
    found = cpus or (None if about.cpus is None else min(about.cpus, MOST_CPUS))
    nics = None if about.nics is None else min(about.nics, MOST_NICS)
    return MachineSpec(memory or about.memory, found, nics=nics)


def _packed(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(path: Path) -> tuple[str, int]:
    """Return a file's digest and its size in bytes. Raises HostError."""
    made = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while data := file.read(_PIECE):
                made.update(data)
            return f"sha256:{made.hexdigest()}", file.tell()
    except OSError as fault:
        raise host_error(fault, "read", path) from fault
