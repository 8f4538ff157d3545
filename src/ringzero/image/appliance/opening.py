"""Taking the disks out of an appliance: where each lies, opened as a disk image.

    with disks_of(path) as (about, opened): ...

Archives are read and never unpacked to names of their own: an OVA where it lies, a box, which is
packed, into a folder that goes again, plain files of its top alone.
"""

from __future__ import annotations

import contextlib
import shutil
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ringzero.disk import open_disk
from ringzero.disk.contract import Disk
from ringzero.errors import GuestImageError
from ringzero.host.files import PARTIAL, host_error, open_regular, require_space
from ringzero.image.appliance import descriptions
from ringzero.image.appliance.descriptions import MAX_DESCRIPTION, Appliance
from ringzero.records import replace
from ringzero.settings import IMAGE_LIMIT
from ringzero.units import format_size

_MAX_MEMBERS = 1000
_READERS = {".ovf": descriptions.ovf, ".vmx": descriptions.vmx, ".vbox": descriptions.vbox}
# What are archives by their names, and what is in them.
_ARCHIVES = {".ova": "an .ovf", ".box": "metadata.json"}
_GZIP = b"\x1f\x8b"


@contextlib.contextmanager
def disks_of(path: Path, work: Path) -> Iterator[tuple[Appliance, list[Disk]]]:
    """Open the disks of an appliance, or a disk image itself, for reading.

    `work` is a folder in which there is room for what a box holds. Raises GuestImageError,
    DiskError, HostError.
    """
    with contextlib.ExitStack() as stack:
        kind, own = _kind(path), None
        paths = [path]
        if kind == "box":
            place = tempfile.TemporaryDirectory(prefix=PARTIAL, dir=work)
            paths = _unpacked(path, Path(stack.enter_context(place)))
            path = paths[0]
            kind, settings = path.suffix.lower(), path.parent / "Vagrantfile"
            own = descriptions.vagrantfile(_small(settings)) if settings.exists() else None
        if kind == "ova":
            about = descriptions.ovf(_member(path, ".ovf"))
            opened = [_open(stack, path, {"member": name}) for name in about.disks]
        elif kind in _READERS:
            about = _READERS[kind](_small(path))
            opened = [_open(stack, _inside(path.parent, name)) for name in about.disks]
        else:
            about = Appliance(tuple(each.name for each in paths))
            opened = [_open(stack, each) for each in paths]
        if own is not None:
            about = replace(about, memory=about.memory or own[0], cpus=about.cpus or own[1])
        yield about, opened


def _kind(path: Path) -> str:
    """Return "ova", "box", the suffix of a description, or "" for a disk image."""
    suffix = path.suffix.lower()
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise GuestImageError(f"{path} is neither a file nor a block device")
        if suffix in _READERS:
            return suffix
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
        if packed:
            return "box"
        with tarfile.open(path, "r:") as archive:
            names = [member.name for member, _ in zip(archive, range(_MAX_MEMBERS), strict=False)]
    except OSError as fault:
        raise host_error(fault, "read", path) from fault
    except (tarfile.TarError, ValueError, OverflowError):
        names = []
    if any(name.removeprefix("./") == "metadata.json" for name in names):
        return "box"
    if any(name.lower().endswith(".ovf") for name in names):
        return "ova"
    if suffix in _ARCHIVES:
        raise GuestImageError(
            f"{path} is no {suffix[1:]}: no archive with {_ARCHIVES[suffix]} in it",
            hint="has it come whole? a disk image is taken under another name",
        )
    return ""


def _member(path: Path, suffix: str) -> bytes:
    """Return the small file of an archive whose name ends so."""
    with _archive(path), tarfile.open(path, "r:") as archive:
        for number, member in enumerate(archive):
            if number >= _MAX_MEMBERS:
                break
            if member.isreg() and member.name.lower().endswith(suffix):
                if member.size > MAX_DESCRIPTION:
                    raise GuestImageError(f"{path}: its {suffix} is too large")
                file = archive.extractfile(member)
                assert file is not None
                return file.read()
    raise GuestImageError(f"{path} has no {suffix}")


def _unpacked(path: Path, place: Path) -> list[Path]:
    """Unpack a box's files into a folder; return its description, or its disks."""
    left = IMAGE_LIMIT.get()
    with _archive(path), tarfile.open(path, "r:*") as archive:
        for number, member in enumerate(archive):
            name = member.name.removeprefix("./")
            if number >= _MAX_MEMBERS:
                raise GuestImageError(f"{path} has more than {_MAX_MEMBERS} files")
            if member.isdir() or "/" in name:
                continue
            if not member.isreg() or member.issparse() or name in ("", ".", ".."):
                raise GuestImageError(f"{path}: {name[:100]!r} is no plain file")
            left -= member.size
            if left < 0:
                raise GuestImageError(
                    f"{path} unpacks to more than {format_size(IMAGE_LIMIT.get())}",
                    hint="RINGZERO_IMAGE_LIMIT=SIZE allows more",
                )
            require_space(place, member.size, f"unpacking {path.name}")
            source = archive.extractfile(member)
            assert source is not None
            with source, (place / name).open("xb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    metadata = place / "metadata.json"
    if not metadata.exists():
        raise GuestImageError(f"{path} is no box: it has no metadata.json")
    who, disks = descriptions.box(_small(metadata))
    if disks:
        return [_inside(place, name) for name in disks]
    wanted = {"libvirt": ("*.img",), "virtualbox": ("*.ovf",)}.get(who, ("*.vmx", "*.ovf", "*.img"))
    found = [file for pattern in wanted for file in sorted(place.glob(pattern))]
    if not found:
        raise GuestImageError(f"{path} is a box for {who[:40]!r}, without a disk that is known")
    return found[:1]


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[None]:
    """Say what is wrong with an archive."""
    try:
        yield
    except (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError) as fault:
        raise GuestImageError(f"{path}: the archive is damaged: {fault}") from fault
    except OSError as fault:
        raise host_error(fault, "unpack", path) from fault


def _inside(folder: Path, name: str) -> Path:
    """Return a file below a folder; raises GuestImageError where links lead out of it."""
    path = folder / name.replace("\\", "/")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise GuestImageError(f"{path} leads out of its folder")
    return path


def _open(stack: contextlib.ExitStack, path: Path, options: dict[str, Any] | None = None) -> Disk:
    disk = open_disk(path, read_only=True, options=options or {})
    return stack.enter_context(disk)


def _small(path: Path) -> bytes:
    try:
        with open(open_regular(path), "rb") as file:  # noqa: PTH123 - of a descriptor
            data = file.read(MAX_DESCRIPTION + 1)
    except OSError as fault:
        raise host_error(fault, "read", path) from fault
    if len(data) > MAX_DESCRIPTION:
        raise GuestImageError(f"{path} is larger than {format_size(MAX_DESCRIPTION)}")
    return data


def targets(path: Path, count: int) -> list[Path]:
    """Return where `count` disks go: the first to `path`, others beside it, with a number."""
    return [path, *(path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(2, count + 1))]
