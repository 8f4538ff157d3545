"""`ringzero snapshot save`."""

from __future__ import annotations

import argparse

from ringzero.cli.machines import add_name, named
from ringzero.cli.snapshot_action import ACTIONS, add_common, store
from ringzero.cli.verb import Verb, print_json


@ACTIONS.register("save")
class Save(Verb):
    summary = "save a machine, running or not, under a name"
    examples = """\
  ringzero snapshot save web ready
  ringzero snapshot save web before-upgrade --disks-only
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_name(parser)
        parser.add_argument("snapshot", metavar="SNAPSHOT", help="the snapshot's name")
        parser.add_argument(
            "--disks-only", action="store_true", help="without memory: what is saved boots anew"
        )
        parser.add_argument(
            "--compress", action="store_true", help="memory by zstd: smaller, slower to restore"
        )
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.control.host.actions import snapshot_facts

        machine, place = named(arguments), store()
        machine.snapshot(
            arguments.snapshot,
            str(place.root),
            memory=not arguments.disks_only,
            compress=arguments.compress,
        )
        if arguments.json:
            print_json(snapshot_facts(place.get(arguments.snapshot)))
        else:
            print(arguments.snapshot)
        return 0
