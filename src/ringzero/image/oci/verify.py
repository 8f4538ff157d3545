"""Whether an image in the store is what its digest says.

Every blob is read and hashed, and so is what packed layers unpack to, which their pull does not do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from ringzero.errors import GuestImageError, RingzeroError
from ringzero.host.progress import QUIET, Progress
from ringzero.image.layers.plain import Headed, pieces
from ringzero.image.oci import manifest as documents
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.store import StoredImage
from ringzero.records import record

_PIECE = 1 << 20
_THREADS = 2
_What = Literal["manifest", "configuration", "layer", "contents"]


@record
class Verified:
    """A blob, or the tar that a packed layer unpacks to, and what was found: `size` is in bytes."""

    what: _What
    digest: str
    size: int
    state: Literal["right", "wrong", "missing"]


def verify(image: StoredImage, cache: Path, progress: Progress = QUIET) -> list[Verified]:
    """Return what became of each blob of an image, its manifest first.

    Where that is not right the others are what the store says, for there is no telling. Behind
    them is what each packed layer unpacks to, beside what the configuration says.
    """
    blobs = Blobs(cache)
    with blobs.in_use(progress), progress.step(f"reading {image.name}") as step:
        found = [_blob(blobs, "manifest", image.digest)]
        rest: list[tuple[_What, str]] = [("configuration", image.config)]
        rest += [("layer", digest) for digest in image.layers]
        if found[0].state == "right":
            value = documents.document(blobs.read(image.digest), "the image's manifest")
            told = documents.manifest(value)
            rest = [("configuration", told.config.digest)]
            rest += [("layer", layer.digest) for layer in told.layers]
        # Disks are not packed.
        layers = () if image.disks else zip(image.layers, image.diff_ids, strict=True)
        packed = [(layer, tar) for layer, tar in layers if layer != tar]
        steps = len(rest) + len(packed)
        with ThreadPoolExecutor(_THREADS, "verify") as pool:
            for one in pool.map(lambda item: _blob(blobs, *item), rest):
                found.append(one)
                step.update((len(found) - 1) / steps)
            right = {one.digest for one in found if one.state == "right"}
            packed = [(layer, tar) for layer, tar in packed if layer in right]
            for one in pool.map(lambda item: _contents(blobs, *item), packed):
                found.append(one)
                step.update((len(found) - 1) / steps)
    return found


def _blob(blobs: Blobs, what: _What, digest: str) -> Verified:
    try:
        with blobs.open(digest) as file:
            return _compared(what, digest, iter(lambda: file.read(_PIECE), b""))
    except (RingzeroError, OSError):
        return Verified(what, digest, 0, "missing")


def _contents(blobs: Blobs, layer: str, digest: str) -> Verified:
    """Check what a layer whose blob is right unpacks to: its pull had a limit for how much."""
    try:
        with blobs.open(layer) as file:
            return _compared("contents", digest, pieces(Headed(file)))
    except GuestImageError:
        return Verified("contents", digest, 0, "wrong")
    except (RingzeroError, OSError):
        return Verified("contents", digest, 0, "missing")


def _compared(what: _What, digest: str, data: Iterable[bytes]) -> Verified:
    made, size = hashlib.new(digest.partition(":")[0]), 0
    for piece in data:
        made.update(piece)
        size += len(piece)
    right = f"{made.name}:{made.hexdigest()}" == digest
    return Verified(what, digest, size, "right" if right else "wrong")
