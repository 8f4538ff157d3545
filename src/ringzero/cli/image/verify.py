"""`ringzero image verify`."""

from __future__ import annotations

import argparse

from ringzero.cli.image_action import ACTIONS, add_image, add_json, one
from ringzero.cli.verb import Verb, print_json


@ACTIONS.register("verify")
class Verify(Verb):
    summary = "read an image wholly, and compare it with its digests"
    examples = """\
  ringzero image verify web:1          exit code 1 where something is wrong or missing
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_image(parser)
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.host.progress import Progress
        from ringzero.image.oci.verify import verify
        from ringzero.plain import to_plain
        from ringzero.settings import CACHE_DIR
        from ringzero.units import format_size

        found = verify(one(arguments.name), CACHE_DIR.get(), Progress())
        if arguments.json:
            print_json([to_plain(item) for item in found])
        else:
            for item in found:
                size = format_size(item.size)
                print(f"{item.state:8} {item.what:14} {item.digest}  {size}")
        return 0 if all(item.state == "right" for item in found) else 1
