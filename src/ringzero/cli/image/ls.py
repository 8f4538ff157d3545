"""`ringzero image ls`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringzero.cli.image_action import ACTIONS, add_json, show
from ringzero.cli.verb import Verb

if TYPE_CHECKING:
    from ringzero.api.values import ImageSummary
    from ringzero.vm.saved.templates import Entry


@ACTIONS.register("ls")
class Listing(Verb):
    summary = "list the images in the cache, and what the saved starts of each take"
    examples = """\
  ringzero image ls
  ringzero image ls --json
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.image import stored

        if arguments.json:
            show(stored.images(), as_json=True)
        else:
            _list(stored.images())
        return 0


def _list(images: Sequence[ImageSummary]) -> None:
    """Print images, and what the saved starts of each take."""
    from ringzero.vm.saved.templates import Templates

    left = Templates().entries()
    for image in images:
        show([image], as_json=False)
        _show_starts([entry for entry in left if _is_of(entry, image)], "")
        left = [entry for entry in left if not _is_of(entry, image)]
    _show_starts(left, " of no image here (ringzero template ls)")


def _is_of(entry: Entry, image: ImageSummary) -> bool:
    """Whether a template is of an image: of its root, or of its kernel where it has none."""
    of = entry.description
    disks = [device["path"] for device in of.get("devices", ()) if device["kind"] == "disk"]
    if image["kind"] != "own":
        return image["root"] in disks
    return not disks and of.get("kernel") == image["kernel"]


def _show_starts(entries: Sequence[Entry], what: str) -> None:
    from ringzero.units import format_size

    if entries:
        count = f"{len(entries)} saved start{'s' if len(entries) > 1 else ''}"
        print(f"  {count}{what}, {format_size(sum(entry.size for entry in entries))}")
