"""Images of containers in the cache, beside ringzero's own:

    blobs/...                        manifests, configurations and layers (`blobs`)
    images/names/HASH.json           a name, and the digest of the manifest that it stands for
    layers/...                       what layers unpack to, for all images that have them
                                     (`contents`)
    images/<digest>/image.json       what a start needs to know of an image
    images/<digest>/root.erofs       its root file system, without the content of files
    images/<digest>/content-N        the content of a layer's files, as in `layers`
    images/<digest>/root.vmdk        the disk with its root file system, whose parts these are
                                     (`root`)
    images/<digest>/disk-N.qcow2     in place of all that, of an imported machine (`machinedisks`)

A start with an image in the store reads two small files and asks nobody anything.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ringzero.api.values import HealthCheck, ImageSummary
from ringzero.digest import blake2b
from ringzero.errors import ConflictError, GuestImageError, NotFoundError
from ringzero.host.files import atomic_file, locked, make_directory
from ringzero.host.progress import QUIET, Progress
from ringzero.image import machinespec
from ringzero.image.machinespec import MachineSpec
from ringzero.image.oci import memory
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.contents import Layers, taken
from ringzero.image.oci.reference import Local, Reference
from ringzero.records import record

# Of `image.json` and the root file system; another one is made anew from the blobs.
FORMAT = 5
INFO, METADATA, ROOT = "image.json", "root.erofs", "root.vmdk"
_SHOWN = 24
# What of a configuration is kept in INFO.
_LISTS = ("entrypoint", "cmd", "env", "ports", "volumes", "healthcheck", "layers", "diff_ids")
_WORDS = ("user", "workdir", "stop_signal", "created", "config")


def nobody(place: Path) -> Sequence[str]:
    """Return who needs an image's directory: nobody, where there is no one to ask."""
    return ()


def refuse_used(name: str, users: Sequence[str]) -> None:
    """Raise ConflictError where `users`, names of machines, need the image called `name`."""
    if users:
        who = ", ".join(users[:5]) + (" ..." if len(users) > 5 else "")
        raise ConflictError(
            f"the image {name} is in use by {who}",
            hint=f"`ringzero rm {users[0]}` first, or `ringzero image rm --force {name}`",
        )


@record
class StoredImage:
    """An image in the store: its names, its manifest's digest, what it runs.

    `root` is the disk image (VMDK) with its root file system, `size` that disk's in bytes. An
    imported machine has `disks` (qcow2), of which the first is its `root`, and `size` is theirs.
    """

    names: tuple[str, ...]
    digest: str
    root: Path
    size: int
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    user: str
    workdir: str
    stop_signal: str
    env: tuple[str, ...]
    ports: tuple[str, ...]
    volumes: tuple[str, ...]
    healthcheck: tuple[str, ...]
    created: str
    config: str
    layers: tuple[str, ...]
    # The digests of the layers' plain tars.
    diff_ids: tuple[str, ...]
    machine: MachineSpec = MachineSpec()
    health: HealthCheck | None = None
    disks: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """Its first name, or the beginning of its digest."""
        return self.names[0] if self.names else self.digest[7 : 7 + 12]

    def summary(self) -> ImageSummary:
        """Return the image as plain data."""
        return {
            "kind": "disk" if self.disks else "container",
            "name": self.name,
            "names": list(self.names),
            "digest": self.digest,
            "size": self.size,
            "root": str(self.root),
            "created": self.created,
            "config": self.config,
            "layers": list(self.layers),
            "entrypoint": list(self.entrypoint),
            "cmd": list(self.cmd),
            "env": list(self.env),
            "user": self.user,
            "workdir": self.workdir,
            "stop_signal": self.stop_signal,
            "ports": list(self.ports),
            "volumes": list(self.volumes),
            "healthcheck": list(self.healthcheck),
            "machine": self.machine.plain(),
            "memory": memory.digest_at(self.root.parent),
            "disks": [str(path) for path in self.disks],
        }


class Store:
    """The images of containers below the cache directory `cache`."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._images = cache / "images"
        self.layers = Layers(cache)

    def lock(self, progress: Progress = QUIET) -> contextlib.AbstractContextManager[int]:
        """Be the only one to change names and images, for a block."""
        return locked(self._images / "lock", progress)

    def place(self, digest: str) -> Path:
        """Return the directory of the image whose manifest has `digest`."""
        return self._images / digest.partition(":")[2][:_SHOWN]

    def named(self, name: Reference | Local) -> StoredImage | None:
        """Return the image that a name stands for; None when it is not (wholly) there."""
        found = _json(self._pointer(str(name)))
        if found is None or found.get("name") != str(name):
            return None
        return self.load(str(found.get("digest")), (_familiar(str(name)),))

    def load(self, digest: str, names: Iterable[str] = ()) -> StoredImage | None:
        """Return the image whose manifest has `digest`, or None when anything is amiss."""
        place = self.place(digest)
        found = _json(place / INFO)
        if found is None or found.get("format") != FORMAT or found.get("digest") != digest:
            return None
        try:
            disks = tuple(place / str(name) for name in found.get("disks", ()))
            root = disks[0] if disks else place / ROOT
            if {name: (place / name).stat().st_size for name in found["parts"]} != found["parts"]:
                return None
            values: dict[str, Any] = {name: tuple(found[name]) for name in _LISTS}
            values |= {name: found[name] for name in _WORDS}
            values["machine"] = machinespec.read(found.get("machine"))
            values["health"] = HealthCheck.from_dict(found["health"] or {})
            return StoredImage(
                names=tuple(names),
                digest=digest,
                root=root,
                size=found["size"],
                disks=disks,
                **values,
            )
        except (OSError, KeyError, TypeError, GuestImageError):
            return None

    def at(self, place: Path) -> StoredImage | None:
        """Return the image whose directory is `place`, or None when anything is amiss."""
        return self.load(str((_json(place / INFO) or {}).get("digest")))

    def set_name(self, name: Reference | Local, digest: str) -> None:
        """Let `name` stand for an image."""
        self._write(self._pointer(str(name)), {"name": str(name), "digest": digest})

    def unset_name(self, name: Reference | Local) -> None:
        """Let `name` stand for nothing; its image stays, until somebody prunes."""
        self._pointer(str(name)).unlink(missing_ok=True)

    def write_info(self, place: Path, digest: str, values: dict[str, Any]) -> None:
        """Write what a start needs to know into an image's directory, which has its root."""
        parts = {path.name: path.stat().st_size for path in sorted(place.iterdir())}
        self._write(place / INFO, {"format": FORMAT, "digest": digest, "parts": parts, **values})

    def images(self) -> list[StoredImage]:
        """Return all images, with all their names, in the order of these."""
        named: dict[str, list[str]] = {}
        for _, name, digest in self._names():
            named.setdefault(digest, []).append(_familiar(name))
        found = []
        for path in self._images.glob(f"*/{INFO}"):
            digest = str((_json(path) or {}).get("digest"))
            image = self.load(digest, sorted(named.get(digest, ())))
            if image is not None:
                found.append(image)
        return sorted(found, key=lambda image: (not image.names, image.names, image.digest))

    def find(self, text: str) -> list[StoredImage]:
        """Return the images called `text`, or whose digest begins so."""
        from ringzero.errors import InvalidValueError
        from ringzero.image.oci.reference import parse

        with contextlib.suppress(InvalidValueError):
            name = _familiar(str(parse(text)))
            found = [image for image in self.images() if name in image.names]
            if found:
                return found
        begin = text.removeprefix("sha256:")
        return [i for i in self.images() if begin and i.digest[7:].startswith(begin)]

    def remove(
        self, text: str, users: Callable[[Path], Sequence[str]] = nobody
    ) -> list[StoredImage]:
        """Take away the name `text`, and images that have no name then.

        Where `text` is a digest, all names of its image. `users` tells who needs an image's
        directory. Returns the images concerned. Raises NotFoundError, ConflictError for one
        that is needed.
        """
        from ringzero.errors import InvalidValueError
        from ringzero.image.oci.reference import parse

        with self.lock():
            found = self.find(text)
            if not found:
                raise NotFoundError(f"no image called {text!r}")
            gone: set[str] | None = None
            with contextlib.suppress(InvalidValueError):
                name = _familiar(str(parse(text)))
                if any(name in image.names for image in found):
                    gone = {name}
            going, left = list[Path](), set[str]()
            for path, name, digest in self._names():
                if any(i.digest == digest for i in found) and (not gone or _familiar(name) in gone):
                    going.append(path)
                else:
                    left.add(digest)
            dropped = [image for image in found if image.digest not in left]
            for image in dropped:
                refuse_used(image.name, users(image.root.parent))
            for path in going:
                path.unlink(missing_ok=True)
            for image in dropped:
                self._drop(image)
        self.sweep()
        return found

    def prune(
        self, users: Callable[[Path], Sequence[str]] = nobody
    ) -> tuple[list[StoredImage], int]:
        """Remove images without a name and blobs of none; return those, and the bytes freed.

        Images whose directory somebody needs, as `users` tells, stay.
        """
        with self.lock():
            unnamed = [image for image in self.images() if not image.names]
            gone = [image for image in unnamed if not users(image.root.parent)]
            freed = sum(self._drop(image) for image in gone)
        return gone, freed + self.sweep()

    def sweep(self) -> int:
        """Remove the blobs and layers that no image needs; return how many bytes that frees."""
        freed = 0
        blobs = self.cache / "blobs"
        with locked(blobs / "lock"):
            kept = set[str]()
            images = self.images()
            for image in images:
                kept |= {image.digest, image.config, *image.layers}
                layer = memory.find(image.root.parent, Blobs(self.cache), image.digest)
                if layer is not None:
                    kept |= {layer.manifest.digest, *(d.digest for d in layer.blobs)}
            freed += self.layers.sweep([d for i in images for d in (*i.layers, *i.diff_ids)])
            for path in blobs.glob("*/*"):
                if path.parent.name == "partial" or f"{path.parent.name}:{path.name}" not in kept:
                    with contextlib.suppress(OSError):
                        freed += path.stat().st_size
                        path.unlink()
        return freed

    def _drop(self, image: StoredImage) -> int:
        from ringzero.host.files import remove_tree

        freed = sum(taken(path) for path in image.root.parent.iterdir())
        remove_tree(image.root.parent)
        return freed

    def _names(self) -> list[tuple[Path, str, str]]:
        found = []
        for path in sorted((self._images / "names").glob("*.json")):
            value = _json(path) or {}
            if isinstance(value.get("name"), str) and isinstance(value.get("digest"), str):
                found.append((path, value["name"], value["digest"]))
        return found

    def _pointer(self, name: str) -> Path:
        text = blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        return self._images / "names" / f"{text}.json"

    def _write(self, path: Path, value: dict[str, Any]) -> None:
        make_directory(path.parent)
        with atomic_file(path) as file:
            file.write(json.dumps(value, indent=1).encode() + b"\n")


def _familiar(name: str) -> str:
    """Return a name as people write it."""
    return name.removeprefix("docker.io/").removeprefix("library/")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
