"""Whether an image in the store is what its digest says: every blob is read and hashed."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from ringzero.errors import RingzeroError
from ringzero.host.progress import QUIET, Progress
from ringzero.image.oci import manifest as documents
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.store import StoredImage
from ringzero.records import record

_PIECE = 1 << 20
_THREADS = 2


@record
class Verified:
    """A blob and what was found: `size` is in bytes."""

    what: Literal["manifest", "configuration", "layer"]
    digest: str
    size: int
    state: Literal["right", "wrong", "missing"]


def verify(image: StoredImage, cache: Path, progress: Progress = QUIET) -> list[Verified]:
    """Return what became of each blob of an image, its manifest first.

    Where that is not right the others are what the store says, for there is no telling.
    """
    blobs = Blobs(cache)
    with blobs.in_use(progress), progress.step(f"reading {image.name}") as step:
        found = [_check(blobs, "manifest", image.digest)]
        rest = [("configuration", image.config), *(("layer", digest) for digest in image.layers)]
        if found[0].state == "right":
            value = documents.document(blobs.read(image.digest), "the image's manifest")
            told = documents.manifest(value)
            rest = [("configuration", told.config.digest)]
            rest += [("layer", layer.digest) for layer in told.layers]
        with ThreadPoolExecutor(_THREADS, "verify") as pool:
            for number, one in enumerate(pool.map(lambda item: _check(blobs, *item), rest), 1):
                found.append(one)
                step.update(number / len(rest))
    return found


def _check(blobs: Blobs, what: str, digest: str) -> Verified:
    size = 0
    try:
        made = hashlib.new(digest.partition(":")[0])
        with blobs.open(digest) as file:
            while data := file.read(_PIECE):
                made.update(data)
                size += len(data)
    except (RingzeroError, OSError):
        return Verified(what, digest, size, "missing")  # type: ignore[arg-type]
    right = f"{made.name}:{made.hexdigest()}" == digest
    return Verified(what, digest, size, "right" if right else "wrong")  # type: ignore[arg-type]
