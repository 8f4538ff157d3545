"""`ringzero image inspect`."""

from __future__ import annotations

import argparse

from ringzero.cli.image_action import ACTIONS, add_images, add_json
from ringzero.cli.verb import Verb, print_json


@ACTIONS.register("inspect")
class Inspect(Verb):
    summary = "tell all about images, as JSON"
    examples = """\
  ringzero image inspect debian:12
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_images(parser)
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.image import stored

        print_json([image for name in arguments.name for image in stored.find(name)])
        return 0
