"""All images in the cache, of both kinds, as plain data for people and programs.

Ringzero's own are `image.micro`'s, those of containers `image.oci.store`'s; they lie side by
side below `images`, share one lock, and are named in one space: a name is one of ours first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ringzero.api.values import ImageSummary
from ringzero.errors import NotFoundError
from ringzero.image import micro
from ringzero.image.oci.store import Store, StoredImage, nobody, refuse_used
from ringzero.settings import CACHE_DIR

# Who needs an image: nobody, where there is no one to ask.
NOBODY = nobody


def own_summary(image: micro.BootFiles) -> ImageSummary:
    """Return one of ringzero's own images as plain data."""
    return {
        "kind": "own",
        "name": image.name,
        "names": [image.name],
        "digest": image.digest,
        "size": image.size,
        "packages": list(image.packages),
        "kernel": str(image.kernel),
        "initrd": str(image.initrd),
        "command_line": image.command_line,
    }


def images() -> list[ImageSummary]:
    """Return all images: ours, then those of containers, each by name."""
    return [
        *map(own_summary, micro.list_images()),
        *(image.summary() for image in _store().images()),
    ]


def find(name: str) -> list[ImageSummary]:
    """Return the images called `name`, or whose digest begins so. Raises NotFoundError."""
    own = _own(name)
    found = [*map(own_summary, own), *(i.summary() for i in _containers(name, bool(own)))]
    if not found:
        raise _unknown(name)
    return found


def remove(name: str, users: Callable[[Path], Sequence[str]] = nobody) -> list[ImageSummary]:
    """Remove the images called `name`, or whose digest begins so.

    Of a container's image with several names only this one goes. `users` tells which machines
    need an image's directory. Raises NotFoundError, ConflictError for an image that is needed.
    """
    own = _own(name)
    if not own:
        if not _store().find(name):
            raise _unknown(name)
        return [image.summary() for image in _store().remove(name, users)]
    for image in own:
        refuse_used(image.name, users(image.kernel.parent))
    return [own_summary(image) for image in micro.remove(name)]


def prune(users: Callable[[Path], Sequence[str]] = nobody) -> tuple[list[ImageSummary], int]:
    """Remove images of containers that have no name, and blobs of none; return bytes freed, too.

    Images whose directory a machine needs, as `users` tells, stay.
    """
    gone, freed = _store().prune(users)
    return [image.summary() for image in gone], freed


def _own(name: str) -> list[micro.BootFiles]:
    images = micro.list_images()
    return [i for i in images if name == i.name or (name and i.digest.startswith(name))]


def _containers(name: str, named: bool) -> list[StoredImage]:
    return [] if named else _store().find(name)


def _store() -> Store:
    return Store(CACHE_DIR.get())


def _unknown(name: str) -> NotFoundError:
    known = dict.fromkeys(n for image in images() for n in image["names"])
    return NotFoundError(
        f"no image called {name!r}", hint=f"in the cache: {', '.join(known) or 'none'}"
    )
