"""`ringzero snapshot rm`."""

from __future__ import annotations

import argparse

from ringzero.cli.snapshot_action import ACTIONS, add_common
from ringzero.cli.verb import AS_IS, Away, Verb, print_json
from ringzero.units import format_size


@ACTIONS.register("rm")
class Remove(Verb):
    summary = "remove snapshots; what others share with them stays"
    away = Away(AS_IS, actions=True)
    examples = """\
  ringzero snapshot rm ready before-upgrade
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("snapshot", metavar="SNAPSHOT", nargs="+", help="a snapshot's name")
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.cli.target import host

        freed = dict[str, int]()
        for name in arguments.snapshot:
            freed[name] = host().remove_snapshot(name)
            if not arguments.json:
                print(f"{name}  {format_size(freed[name])} freed", flush=True)
        if arguments.json:
            print_json([{"name": name, "freed": size} for name, size in freed.items()])
        return 0
