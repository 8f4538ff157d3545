"""`ringzero image save`."""

from __future__ import annotations

import argparse

from ringzero.cli.image_action import ACTIONS, add_image, add_json, one
from ringzero.cli.verb import CARRIED, FETCHED, Away, Verb, print_json


@ACTIONS.register("save")
class Save(Verb):
    summary = "write an image as a layout: run oci:DIR takes it"
    away = Away(CARRIED, files={"target": FETCHED})
    examples = """\
  ringzero image save web:1 ./layout  the OCI image layout, which `run oci:./layout` takes
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_image(parser)
        parser.add_argument("target", metavar="DIR", help="a new directory")
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from pathlib import Path

        from ringzero.image.oci import push
        from ringzero.settings import CACHE_DIR

        image = one(arguments.name)
        push.save(image, Path(arguments.target), arguments.name, cache=CACHE_DIR.get())
        if arguments.json:
            print_json({"path": arguments.target, "digest": image.digest})
        return 0
