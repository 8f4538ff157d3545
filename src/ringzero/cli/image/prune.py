"""`ringzero image prune`."""

from __future__ import annotations

import argparse

from ringzero.cli import building
from ringzero.cli.image_action import ACTIONS, add_json, show
from ringzero.cli.verb import Verb, print_json


@ACTIONS.register("prune")
class Prune(Verb):
    summary = "remove what no name leads to"
    examples = """\
  ringzero image prune           images without a name, and layers that none needs
  ringzero image prune --builds  and what builds have kept
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--builds", action="store_true", help="and what builds have kept")
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.cli.image_action import needed_by
        from ringzero.image import stored
        from ringzero.units import format_size

        gone, freed = stored.prune(needed_by)
        freed += building.prune() if arguments.builds else 0
        if arguments.json:
            print_json({"images": gone, "freed": freed})
        else:
            show(gone, as_json=False)
            print(f"{format_size(freed)} freed")
        return 0
