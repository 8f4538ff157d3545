"""What an action of `ringzero image` is, and what the actions share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.cli.verb import Verb, print_json
from ringzero.registry import Registry

if TYPE_CHECKING:
    from ringzero.api.values import ImageSummary
    from ringzero.image.oci.store import StoredImage

ACTIONS: Registry[type[Verb]] = Registry("image command", "ringzero.cli.image")
_NAME = "a name, or the beginning of a digest"


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the flag that every action has."""
    parser.add_argument("--json", action="store_true", help="for programs")


def add_image(parser: argparse.ArgumentParser, name: str = "name", metavar: str = "IMAGE") -> None:
    """Add the argument that means an image of the store."""
    parser.add_argument(name, metavar=metavar, help=_NAME)


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add the argument that means one image or several."""
    parser.add_argument("name", metavar="IMAGE", nargs="+", help=_NAME)


def one(name: str) -> StoredImage:
    """Return the one image of containers called so. Raises NotFoundError, InvalidValueError."""
    from ringzero.image.oci import push
    from ringzero.settings import CACHE_DIR

    return push.find(name, CACHE_DIR.get())


def needed_by(place: Path) -> list[str]:
    """Return who needs an image's directory: machines, and versions that can be gone back to."""
    from ringzero.control.host.directory import users_of
    from ringzero.deployment import directory
    from ringzero.image.oci.store import Store
    from ringzero.settings import CACHE_DIR

    found = users_of(place)
    image = Store(CACHE_DIR.get()).at(place)
    return found if image is None else found + directory.users_of(image.digest)


def show(images: Iterable[ImageSummary], *, as_json: bool) -> None:
    """Print images, a line each."""
    from ringzero.units import format_size

    if as_json:
        print_json(list(images))
        return
    for image in images:
        names = ", ".join(image["names"] or [image["name"]])
        digest = image["digest"].removeprefix("sha256:")[:12]
        print(f"{names}  {digest}  {format_size(image['size'])}")
        for package in image.get("packages", ()):
            print(f"  {package}")
