"""`ringzero image`: build, list and remove guest images in the cache."""

from __future__ import annotations

import argparse
from typing import Any

from ringzero.cli.verb import VERBS, Verb, print_json


@VERBS.register("image")
class Image(Verb):
    summary = "build, list and remove guest images"
    examples = """\
  ringzero image build                the default guest, if it is not there yet
  ringzero image build --refresh      the same from the newest Debian packages
  ringzero image build full           as micro, with the kernel of real machines
  ringzero image ls
  ringzero image rm micro
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the actions and their flags."""
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        build = actions.add_parser("build", help="put an image together")
        build.add_argument("name", nargs="?", default="micro", help="default: micro")
        build.add_argument("--refresh", action="store_true", help="ask for newer packages")
        build.add_argument("--json", action="store_true")
        listing = actions.add_parser("ls", help="list the images in the cache")
        listing.add_argument("--json", action="store_true")
        removal = actions.add_parser("rm", help="remove images from the cache")
        removal.add_argument("name", nargs="+", help="a name, or the beginning of a digest")
        removal.add_argument("--json", action="store_true")

    def execute(self, arguments: argparse.Namespace) -> int:
        """Do the action."""
        from ringzero.image import micro

        if arguments.action == "build":
            from ringzero.host.progress import Progress
            from ringzero.image.names import IMAGES

            make = IMAGES.get(arguments.name)
            images: list[Any] = [make(progress=Progress(), refresh=arguments.refresh)]
        elif arguments.action == "ls":
            images = micro.list_images()
        else:
            images = [image for name in arguments.name for image in micro.remove(name)]
        _show(images, arguments.json)
        return 0


def _show(images: list[Any], as_json: bool) -> None:
    from dataclasses import asdict

    from ringzero.units import format_size

    if as_json:
        print_json([asdict(image) for image in images])
        return
    for image in images:
        print(f"{image.name}  {image.digest[:12]}  {format_size(image.size)}")
        for package in image.packages:
            print(f"  {package}")
