"""All images of a file or directory, brought into the store with the names that they have there.

Files are what `docker save`, `podman save` and `skopeo copy` write: a tar with manifest.json, or
an OCI image layout as a tar, either of them compressed or not. Directories are layouts.
"""

from __future__ import annotations

import contextlib
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ringzero.errors import GuestImageError
from ringzero.host.files import host_error, make_directory, require_space
from ringzero.host.progress import QUIET, Progress
from ringzero.image import compression
from ringzero.image.oci import manifest as documents
from ringzero.image.oci.local import Archive
from ringzero.image.oci.manifest import MAX_DOCUMENT
from ringzero.image.oci.pull import pull
from ringzero.image.oci.reference import ARCHIVE, LAYOUT, Local, is_tag, parse_reference
from ringzero.image.oci.store import Store, StoredImage
from ringzero.settings import IMAGE_LIMIT
from ringzero.units import MIB, format_size

_PIECE, _LOOK = MIB, 64 * MIB
# What is taken out of a tar of a layout: nothing else is part of one.
_LAYOUT_FILE = re.compile(r"(?:\./)?(index\.json|oci-layout|blobs/[a-z0-9]+/[0-9a-f]+)")
# What tells an archive of `docker save` and a layout.
ARCHIVE_LIST, LAYOUT_INDEX = "manifest.json", "index.json"
_SUFFIXES = re.compile(
    r"(\.(oci|docker|tar|tgz|gz|xz|bz2|zst|ova|ovf|box|vmx|vbox|raw|img|qcow2|vmdk|vhd|vhdx|vdi))+$"
)
# containerd's name of a whole reference; that of the specification may be a tag only.
_FULL_NAME, _NAME = "io.containerd.image.name", "org.opencontainers.image.ref.name"


def load(path: Path, *, cache: Path, progress: Progress = QUIET) -> list[StoredImage]:
    """Bring the images at `path` into the store; return them with their names.

    Raises HostError, GuestImageError, InvalidValueError.
    """
    if path.is_dir():
        return _layout(path, path.name, cache, progress)
    try:
        with tempfile.TemporaryDirectory(dir=make_directory(cache), prefix="load-") as place:
            whole = plain(path, Path(place), progress)
            names = _names(whole, path)
            if ARCHIVE_LIST in names:
                return _archive(whole, cache, progress)
            if LAYOUT_INDEX not in names:
                raise GuestImageError(
                    f"{path} has neither {ARCHIVE_LIST} nor {LAYOUT_INDEX}",
                    hint="`docker save`, `podman save` and `ringzero image save` write images; "
                    f"a disk, or a system's files: `ringzero image import {path}`",
                )
            target = Path(place, "layout")
            _extract(whole, target)
            return _layout(target, path.name, cache, progress)
    except OSError as fault:
        raise host_error(fault, "read", path) from fault


def plain(path: Path, place: Path, progress: Progress) -> Path:
    """Return the file itself, or where in the folder `place` it lies without its compression.

    Raises GuestImageError where it is damaged, or larger than RINGZERO_IMAGE_LIMIT, HostError,
    OSError.
    """
    with path.open("rb") as file:
        head = file.read(compression.HEAD)
    if not compression.is_compressed(head):
        return path
    target, limit = place / "plain", IMAGE_LIMIT.get()
    size = 0
    with progress.step(f"unpacking {path.name}") as step:
        try:
            with path.open("rb") as packed, target.open("wb") as out:
                for data in compression.pieces(head, packed):
                    if size // _LOOK != (size + len(data)) // _LOOK:
                        require_space(place, _LOOK, f"unpacking {path}")
                        step.update(None, format_size(size))
                    size += len(data)
                    if size > limit:
                        raise GuestImageError(
                            f"{path} unpacks to more than {format_size(limit)}",
                            hint="RINGZERO_IMAGE_LIMIT=SIZE allows more",
                        )
                    out.write(data)
        except compression.DamagedError as fault:
            raise GuestImageError(f"{path} is damaged: {fault}") from fault
    return target


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while data := file.read(_PIECE):
        yield data


def _names(whole: Path, path: Path) -> set[str]:
    """Return the names of the files in a tar's top directory, and its blobs'."""
    try:
        with tarfile.open(whole, "r:") as archive:
            return {member.name.removeprefix("./") for member in archive if member.isreg()}
    except (tarfile.TarError, UnicodeError) as fault:
        raise GuestImageError(f"{path} is no archive of images: {fault}") from fault


def _extract(whole: Path, target: Path) -> None:
    """Take the files of a layout out of a tar."""
    with tarfile.open(whole, "r:") as archive:
        for member in archive:
            found = _LAYOUT_FILE.fullmatch(member.name)
            file = archive.extractfile(member) if found and member.isreg() else None
            if found is None or file is None:
                continue
            place = target / found[1]
            place.parent.mkdir(parents=True, exist_ok=True)
            require_space(target, member.size, "unpacking the images")
            with place.open("wb") as out:
                for data in _pieces(file):
                    out.write(data)


def _archive(whole: Path, cache: Path, progress: Progress) -> list[StoredImage]:
    """Load each image of a `docker save`; one without a name is known by its digest."""
    with contextlib.closing(Archive(Local(ARCHIVE, whole))) as archive:
        images = archive.names
    if len(images) > 1 and not all(images):
        raise GuestImageError(
            "one of several images in the archive has no name",
            hint="save them one by one, or with their names",
        )
    return [
        _take(Local(ARCHIVE, whole, names[0] if names else None), names, cache, progress)
        for names in images
    ]


def _layout(place: Path, name: str, cache: Path, progress: Progress) -> list[StoredImage]:
    """Load each image of a layout."""
    index = place / LAYOUT_INDEX
    try:
        data = index.read_bytes() if index.stat().st_size <= MAX_DOCUMENT else b""
    except OSError as fault:
        raise GuestImageError(f"{name} is no OCI image layout: it has no index.json") from fault
    value = documents.document(data, "index.json")
    manifests = documents.index(value)
    if not manifests:
        raise GuestImageError(f"{name} holds no image")
    found = []
    for descriptor, item in zip(manifests, value["manifests"], strict=True):
        notes = item.get("annotations") or {}
        told = [notes.get(_FULL_NAME) or notes.get(_NAME)]
        names = [text for text in told if isinstance(text, str) and not is_tag(text)]
        names += [f"{stem(name)}:{tag}" for tag in told if isinstance(tag, str) and is_tag(tag)]
        found.append(_take(Local(LAYOUT, place, descriptor.digest), names, cache, progress))
    return found


def stem(name: str) -> str:
    """Return what an image is called whose file or directory says no more than its own name."""
    return re.sub(r"[^a-z0-9]+", "-", _SUFFIXES.sub("", name.lower())).strip("-") or "image"


def _take(local: Local, names: list[str], cache: Path, progress: Progress) -> StoredImage:
    """Pull an image, and let `names` stand for it, not the place that it came from."""
    references = [parse_reference(name) for name in names]
    image = pull(local, cache=cache, progress=progress)
    store = Store(cache)
    with store.lock(progress):
        for reference in references:
            store.set_name(reference, image.digest)
        store.unset_name(local)
    return store.load(image.digest, [reference.familiar for reference in references]) or image


@contextlib.contextmanager
def incoming(cache: Path) -> Iterator[Path]:
    """Have what comes on standard input in a file, for the block. Raises HostError."""
    place = make_directory(cache)
    with tempfile.NamedTemporaryFile(dir=place, prefix="load-", suffix=".tar") as file:
        try:
            for data in _pieces(sys.stdin.buffer):
                file.write(data)
            file.flush()
        except OSError as fault:
            raise host_error(fault, "write", place) from fault
        yield Path(file.name)
