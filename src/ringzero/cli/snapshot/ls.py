"""`ringzero snapshot ls`."""

from __future__ import annotations

import argparse

from ringzero.cli.machines import note, table
from ringzero.cli.snapshot_action import ACTIONS, add_common, store, when
from ringzero.cli.verb import Verb, print_json
from ringzero.units import format_size


@ACTIONS.register("ls")
class List(Verb):
    summary = "list the snapshots, with their sizes and parents"
    examples = """\
  ringzero snapshot ls
  ringzero snapshot ls --json
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("-q", "--quiet", action="store_true", help="print names only")
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.control.host.actions import snapshot_summary

        place = store()
        if arguments.quiet:
            for name in place.names():
                print(name)
            return 0
        nodes, (_, bad) = place.tree(), place.all()
        if arguments.json:
            damaged = [{"name": name, "damaged": fault.message} for name, fault in bad.items()]
            print_json([*map(snapshot_summary, nodes), *damaged])
            return 0
        rows = [
            (
                node.snapshot.name,
                str(node.snapshot.manifest.config.get("name")),
                when(node.snapshot),
                "memory" if node.snapshot.manifest.memory else "disks",
                format_size(node.own),
                format_size(node.shared),
                node.parent or "-",
            )
            for node in nodes
        ]
        table(("NAME", "MACHINE", "TAKEN", "KIND", "OWN", "SHARED", "PARENT"), rows)
        for fault in bad.values():
            note(fault.message)
        return 0
