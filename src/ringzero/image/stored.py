"""All images in the cache, of both kinds, as plain data for people and programs.

Ringzero's own are `image.micro`'s, those of containers `image.oci.store`'s; they lie side by
side below `images`, share one lock, and are named in one space: a name is one of ours first.
"""

from __future__ import annotations

from typing import Any

from ringzero.errors import NotFoundError
from ringzero.image import micro
from ringzero.image.oci.store import Store, StoredImage
from ringzero.settings import CACHE_DIR

_Summary = dict[str, Any]


def own_summary(image: micro.BootFiles) -> _Summary:
    """Return one of ringzero's own images as plain data."""
    return {
        "kind": "own",
        "name": image.name,
        "digest": image.digest,
        "size": image.size,
        "packages": list(image.packages),
        "kernel": str(image.kernel),
        "initrd": str(image.initrd),
        "command_line": image.command_line,
    }


def images() -> list[_Summary]:
    """Return all images: ours, then those of containers, each by name."""
    return [
        *map(own_summary, micro.list_images()),
        *(image.summary() for image in _store().images()),
    ]


def find(name: str) -> list[_Summary]:
    """Return the images called `name`, or whose digest begins so. Raises NotFoundError."""
    own = [i for i in micro.list_images() if name == i.name or (name and i.digest.startswith(name))]
    found = [*map(own_summary, own), *(i.summary() for i in _containers(name, bool(own)))]
    if not found:
        raise _unknown(name)
    return found


def remove(name: str) -> list[_Summary]:
    """Remove the images called `name`, or whose digest begins so. Raises NotFoundError.

    Of a container's image with several names only this one goes.
    """
    try:
        return [own_summary(image) for image in micro.remove(name)]
    except NotFoundError:
        if not _store().find(name):
            raise _unknown(name) from None
    return [image.summary() for image in _store().remove(name)]


def prune() -> tuple[list[_Summary], int]:
    """Remove images of containers that have no name, and blobs of none; return bytes freed, too."""
    gone, freed = _store().prune()
    return [image.summary() for image in gone], freed


def _containers(name: str, named: bool) -> list[StoredImage]:
    return [] if named else _store().find(name)


def _store() -> Store:
    return Store(CACHE_DIR.get())


def _unknown(name: str) -> NotFoundError:
    known = dict.fromkeys(n for image in images() for n in image.get("names") or [image["name"]])
    return NotFoundError(
        f"no image called {name!r}", hint=f"in the cache: {', '.join(known) or 'none'}"
    )
