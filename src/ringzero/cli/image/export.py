"""`ringzero image export`."""

from __future__ import annotations

import argparse
import sys

from ringzero.cli.image_action import ACTIONS, add_image, add_json, one
from ringzero.cli.verb import Verb, print_json


@ACTIONS.register("export")
class Export(Verb):
    summary = "write an image's files as one tar, its layers merged"
    examples = """\
  ringzero image export web:1 web.tar
  ringzero image export web:1 - | tar -t
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_image(parser)
        parser.add_argument("file", metavar="FILE|-", help="- is standard output")
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from pathlib import Path

        from ringzero.build.flatten import flatten
        from ringzero.host.files import atomic_file, host_error
        from ringzero.host.progress import Progress
        from ringzero.settings import CACHE_DIR

        image, cache = one(arguments.name), CACHE_DIR.get()
        if arguments.file == "-":
            flatten(image, sys.stdout.buffer, cache=cache, progress=Progress())
            sys.stdout.buffer.flush()
            return 0
        path = Path(arguments.file)
        try:
            with atomic_file(path) as file:
                made = flatten(image, file, cache=cache, progress=Progress())
        except OSError as fault:
            raise host_error(fault, "write", path) from fault
        if arguments.json:
            print_json({"path": arguments.file, "digest": made.digest, "size": made.size})
        return 0
