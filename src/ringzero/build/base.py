"""What a stage stands on: an image of the store, ringzero's own guest, or nothing at all."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ringzero.build import entries, parts, system
from ringzero.build.cache import BuildCache, key
from ringzero.build.cut import Cut
from ringzero.build.entries import Entry, Layer
from ringzero.build.stage import State
from ringzero.errors import GuestImageError
from ringzero.host.progress import Progress
from ringzero.image import cpio
from ringzero.image.names import IMAGES
from ringzero.image.oci import boot
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.boot import ContainerFiles
from ringzero.image.oci.files import open_system
from ringzero.image.oci.made import Made, put
from ringzero.image.oci.manifest import Descriptor, document, host_architecture, manifest
from ringzero.image.oci.store import StoredImage
from ringzero.records import record

SCRATCH = "scratch"
# What of ringzero's own guest is no part of an image: its kernel's modules, and what the host
# speaks with, which each machine brings along.
_LEFT_OUT = ("usr/lib/modules/", "init", "dev/")


@record
class Base:
    """An image to stand on; its layers are in the blobs, and `diff_ids` are their plain tars'."""

    name: str
    image: StoredImage
    files: ContainerFiles
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]
    config: dict[str, Any]


def find(
    name: str, cache: Path, builds: BuildCache, epoch: int, progress: Progress, cut: Cut
) -> Base:
    """Return the image called `name`; it is pulled, or made, where it is not there.

    A pull ends where `cut` is made. Raises what the finding of images raises.
    """
    if name == SCRATCH:
        return _of(name, _import((), cache, builds, epoch, progress), cache, progress)
    if name in IMAGES:
        own = IMAGES.get(name)(progress=progress)
        # Nothing else goes into its layer.
        step = key("OWN", own.digest, str(epoch))
        layer = builds.find(step)
        if layer is None:
            assert own.initrd is not None
            found = tuple(_own_files(own.initrd.read_bytes()))
            layer = builds.add(lambda file: entries.write(found, file, epoch))
            builds.keep(step, layer)
        paths = ((layer, builds.layer(layer.digest)),)
        return _of(name, _import(paths, cache, builds, epoch, progress), cache, progress)
    image = boot.find(name, progress=progress, opened=cut.add).image
    if image.disks:
        image = _of_machine(image, cache, builds, epoch, progress)
    return _of(name, image, cache, progress)


def _of_machine(
    image: StoredImage, cache: Path, builds: BuildCache, epoch: int, progress: Progress
) -> StoredImage:
    """Return an image with the files of an imported machine's system.

    Raises GuestImageError, FileSystemError where they cannot be read.
    """
    step = key("SYSTEM", image.digest)
    layer = builds.find(step)
    if layer is None:
        with progress.step(f"reading the files of {image.name}"), open_system(image) as files:
            # Their times are the same whenever they are read.
            layer = builds.add(
                lambda file: entries.write(system.entries(files), file, entries.KEEP)
            )
        builds.keep(step, layer)
    paths = ((layer, builds.layer(layer.digest)),)
    return _import(paths, cache, builds, epoch, progress)


def _of(name: str, image: StoredImage, cache: Path, progress: Progress) -> Base:
    blobs = Blobs(cache)
    found = manifest(document(blobs.read(image.digest), "the image's manifest"))
    config = document(blobs.read(image.config), "the image's configuration")
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or len(diff_ids) != len(found.layers):
        raise GuestImageError(f"the image {name} does not tell its layers' digests")
    files = boot.files("build", image, progress=progress)
    return Base(name, image, files, found.layers, tuple(map(str, diff_ids)), config)


def _own_files(archive: bytes) -> Iterator[Entry]:
    """Yield what of ringzero's own guest an image holds."""
    for entry in cpio.read(archive):
        name = entry.name.strip("/")
        if name in ("", ".") or name.startswith(_LEFT_OUT):
            continue
        link = entry.data if stat.S_ISLNK(entry.mode) else b""
        regular = stat.S_ISREG(entry.mode)
        yield Entry(
            name.encode("utf-8", "surrogateescape"),
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime,
            link,
            entry.device,
            size=len(entry.data) if regular else 0,
            content=lambda data=entry.data: iter((data,)),  # type: ignore[misc]
        )


def _import(
    layers: tuple[tuple[Layer, Path], ...],
    cache: Path,
    builds: BuildCache,
    epoch: int,
    progress: Progress,
) -> StoredImage:
    """Return the image of some layers, which lie in files, as one of the store."""
    state = State(config={"Cmd": ["/bin/sh"]} if layers else {})
    architecture = host_architecture()
    blobs = Blobs(cache)
    with blobs.in_use(progress):
        packed = parts.pack(layers, 0, builds=builds, blobs=blobs, progress=progress)
        own = [part for layer in packed for part in layer]
        config = state.document(architecture, [part.diff_id for part in own], created(epoch))
        made = Made(config, tuple((part.blob, None) for part in own))
        return put(made, cache=cache, progress=progress)


def created(epoch: int) -> str:
    """Return a time as images have it (RFC 3339)."""
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
