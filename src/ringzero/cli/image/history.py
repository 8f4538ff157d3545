"""`ringzero image history`."""

from __future__ import annotations

import argparse

from ringzero.cli.image_action import ACTIONS, add_image, add_json, one
from ringzero.cli.verb import Verb, print_json


@ACTIONS.register("history")
class History(Verb):
    summary = "tell the steps that made an image"
    examples = """\
  ringzero image history web:1        its steps, and the size of each one's layer
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_image(parser)
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.image.oci import push
        from ringzero.settings import CACHE_DIR
        from ringzero.units import format_size

        steps = push.history(one(arguments.name), CACHE_DIR.get())
        if arguments.json:
            print_json(steps)
            return 0
        for step in steps:
            size = format_size(step["size"]) if step["layer"] else "-"
            text = " ".join(step["instruction"].split())[:90]
            print(f"{step['created']:20}  {size:>10}  {text}")
        return 0
