"""`ringzero image tag`."""

from __future__ import annotations

import argparse

from ringzero.cli.image_action import ACTIONS, add_image, add_json, one, show
from ringzero.cli.verb import Verb


@ACTIONS.register("tag")
class Tag(Verb):
    summary = "give an image one more name"
    examples = """\
  ringzero image tag web:1 registry.example/web:1
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_image(parser)
        parser.add_argument("target", metavar="NAME[:TAG]", help="what it is called, too")
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.image.oci.reference import parse_reference
        from ringzero.image.oci.store import Store
        from ringzero.settings import CACHE_DIR

        image, name = one(arguments.name), parse_reference(arguments.target)
        store = Store(CACHE_DIR.get())
        with store.lock():
            store.set_name(name, image.digest)
        show([i.summary() for i in store.find(arguments.target)], as_json=arguments.json)
        return 0
