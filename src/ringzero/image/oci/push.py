"""Taking an image of the store elsewhere: to a registry, or into a layout on the disk."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ringzero.errors import InvalidValueError, NotFoundError
from ringzero.host.files import atomic_directory, host_error, require_space
from ringzero.host.progress import QUIET, Progress
from ringzero.image.oci import manifest as documents
from ringzero.image.oci import memory, referrers
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.certificates import Trust
from ringzero.image.oci.manifest import OCI_INDEX, Descriptor, Manifest
from ringzero.image.oci.memory import MemoryLayer
from ringzero.image.oci.reference import Reference
from ringzero.image.oci.registry import Registry
from ringzero.image.oci.signing import kept, remote
from ringzero.image.oci.store import Store, StoredImage
from ringzero.units import format_size

# As many as Docker's client has.
_THREADS = 4
_PIECE = 1 << 20
# The comment on a part of a step's layer (`ringzero.build.parts`).
_PART = re.compile(r"part ([1-9][0-9]{0,3}) of [0-9]{1,4}(: .*)?", re.DOTALL)


def find(text: str, cache: Path) -> StoredImage:
    """Return the one image of the store called `text`. Raises NotFoundError, InvalidValueError."""
    found = Store(cache).find(text)
    if not found:
        raise NotFoundError(f"no image called {text!r}", hint="`ringzero image ls` lists all")
    if len(found) > 1:
        raise InvalidValueError(f"{text!r} is the beginning of {len(found)} images' digests")
    return found[0]


def push(
    image: StoredImage,
    target: Reference,
    *,
    cache: Path,
    progress: Progress = QUIET,
    trust: Trust | None = None,
) -> int:
    """Push an image of the store to a registry; return how many bytes of blobs went over.

    What the registry has already is not sent; the memory and the signatures that it has in the
    store go along. Raises HostError, NotFoundError, GuestImageError.
    """
    blobs = Blobs(cache)
    with blobs.in_use(progress), contextlib.closing(Registry(target, trust)) as registry:
        data, kind, manifest = _manifest(image, blobs)
        layer = memory.find(image.root.parent, blobs, image.digest)
        more = layer.blobs if layer is not None else ()
        wanted = {d.digest: d for d in (*manifest.layers, manifest.config, *more)}
        sizes = sum(d.size for d in wanted.values())
        lock, done, sent = threading.Lock(), 0, 0
        with progress.step(f"pushing {target.familiar} ({format_size(sizes)})") as step:

            def count(size: int) -> None:
                nonlocal done
                with lock:
                    done += size
                    step.update(min(done / sizes, 1.0), format_size(done))

            def one(descriptor: Descriptor) -> int:
                read = _reader(blobs.path(descriptor.digest), count)
                if registry.put_blob(descriptor, read):
                    return descriptor.size
                count(descriptor.size)
                return 0

            with ThreadPoolExecutor(_THREADS, "push") as pool:
                try:
                    sent = sum(pool.map(one, wanted.values()))
                except BaseException:
                    registry.close()
                    pool.shutdown(cancel_futures=True)
                    raise
        registry.put_manifest(target.target, data, kind)
        if layer is not None:
            _refer(registry, image.digest, layer, blobs)
        if signatures := kept.load(image):
            remote.put(registry, Descriptor(kind, image.digest, len(data)), signatures)
    return sent


def _refer(registry: Registry, image: str, layer: MemoryLayer, blobs: Blobs) -> None:
    """Have a registry know an image's memory layer, whose blobs it has, among its referrers."""
    made = layer.manifest
    if not registry.put_manifest(made.digest, blobs.read(made.digest), made.media_type):
        referrers.add(registry, image, made, memory.ARTIFACT)


def save(image: StoredImage, target: Path, name: str, *, cache: Path) -> None:
    """Write an image of the store into a new directory in the OCI image layout (image-layout.md).

    Raises InvalidValueError where `target` exists, HostError.
    """
    if target.exists():
        raise InvalidValueError(f"{target} exists", hint="an image is saved into a new directory")
    blobs = Blobs(cache)
    with blobs.in_use():
        data, kind, manifest = _manifest(image, blobs)
        wanted = [*manifest.layers, manifest.config, Descriptor(kind, image.digest, len(data))]
        notes = {"org.opencontainers.image.ref.name": name}
        layer = memory.find(image.root.parent, blobs, image.digest)
        if layer is not None:
            wanted += [layer.manifest, *layer.blobs]
            # Not in the index: a layout of one image is that for other programs, too.
            notes[memory.ANNOTATION] = layer.manifest.digest
        require_space(target.parent, sum(d.size for d in wanted), f"saving {image.name}")
        with atomic_directory(target.absolute()) as work:
            for descriptor in wanted:
                algorithm, _, text = descriptor.digest.partition(":")
                place = work / "blobs" / algorithm / text
                place.parent.mkdir(parents=True, exist_ok=True)
                _copy(blobs.path(descriptor.digest), place)
            index = {
                "schemaVersion": 2,
                "mediaType": OCI_INDEX,
                "manifests": [
                    {
                        "mediaType": kind,
                        "digest": image.digest,
                        "size": len(data),
                        "annotations": notes,
                    }
                ],
            }
            (work / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
            (work / "index.json").write_text(json.dumps(index))


def history(image: StoredImage, cache: Path) -> list[dict[str, Any]]:
    """Return the steps that made an image, the first one first, each with its layer's size.

    `layer` is the digest of what is sent of it, None where a step made none, and `layers` are those
    of all parts of one that was cut. Raises HostError, GuestImageError.
    """
    blobs = Blobs(cache)
    _, _, manifest = _manifest(image, blobs)
    config = documents.document(blobs.read(image.config), "the image's configuration")
    layers = list(manifest.layers)
    steps = config.get("history")
    found: list[dict[str, Any]] = []
    for step in steps if isinstance(steps, list) else []:
        if not isinstance(step, dict):
            continue
        layer = None if step.get("empty_layer") or not layers else layers.pop(0)
        number = _PART.fullmatch(str(step.get("comment", "")))
        if layer is not None and number and int(number[1]) > 1 and found:
            found[-1]["layers"].append(layer.digest)
            found[-1]["size"] += layer.size
            continue
        found.append(_step(layer, str(step.get("created", "")), str(step.get("created_by", ""))))
    # Images may tell nothing of how they were made.
    return found + [_step(layer) for layer in layers]


def _step(layer: Descriptor | None, created: str = "", instruction: str = "") -> dict[str, Any]:
    return {
        "created": created,
        "instruction": instruction,
        "layer": layer.digest if layer else None,
        "layers": [layer.digest] if layer else [],
        "size": layer.size if layer else 0,
    }


def _manifest(image: StoredImage, blobs: Blobs) -> tuple[bytes, str, Manifest]:
    """Return an image's manifest as it came, its media type, and what it says."""
    data = blobs.read(image.digest)
    value = documents.document(data, "the image's manifest")
    return data, documents.media_type(value), documents.manifest(value)


def _reader(path: Path, told: Callable[[int], object]) -> Callable[[], Iterator[bytes]]:
    """Return what yields a blob's bytes, and tells how many went."""

    def read() -> Iterator[bytes]:
        with path.open("rb") as file:
            while data := file.read(_PIECE):
                yield data
                told(len(data))

    return read


def _copy(source: Path, target: Path) -> None:
    try:
        with source.open("rb") as file, target.open("wb") as out:
            while data := file.read(_PIECE):
                out.write(data)
    except OSError as fault:
        raise host_error(fault, "write", target) from fault
