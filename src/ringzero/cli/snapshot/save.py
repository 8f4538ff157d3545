"""`ringzero snapshot save`."""

from __future__ import annotations

import argparse

from ringzero.cli.machines import add_name, named
from ringzero.cli.snapshot_action import ACTIONS, add_common, find, store
from ringzero.cli.verb import AS_IS, Away, Verb, print_json


@ACTIONS.register("save")
class Save(Verb):
    summary = "save a machine, running or not, under a name"
    away = Away(AS_IS, actions=True)
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
        from ringzero.cli.target import host, remote

        machine = named(arguments)
        machine.snapshot(
            arguments.snapshot,
            str(store().root) if remote() is None else "",
            memory=not arguments.disks_only,
            compress=arguments.compress,
        )
        if arguments.json:
            print_json(find(host(), arguments.snapshot))
        else:
            print(arguments.snapshot)
        return 0
