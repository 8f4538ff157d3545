"""`ringzero snapshot ls`."""

from __future__ import annotations

import argparse

from ringzero.api.values import SnapshotSummary
from ringzero.cli.machines import note, table
from ringzero.cli.snapshot_action import ACTIONS, add_common, store, when
from ringzero.cli.verb import AS_IS, Away, Verb, print_json
from ringzero.units import format_size


@ACTIONS.register("ls")
class List(Verb):
    summary = "list the snapshots, with their sizes and parents"
    away = Away(AS_IS, actions=True)
    examples = """\
  ringzero snapshot ls
  ringzero snapshot ls --json
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("-q", "--quiet", action="store_true", help="print names only")
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.cli.target import remote
        from ringzero.control.host.actions import snapshot_summary

        client = remote()
        if client is not None:
            return _list_there(client.snapshots(), arguments)
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
        _show([snapshot_summary(node) for node in nodes])
        for fault in bad.values():
            note(fault.message)
        return 0


def _list_there(found: list[SnapshotSummary], arguments: argparse.Namespace) -> int:
    if arguments.quiet:
        for facts in found:
            print(facts["name"])
    elif arguments.json:
        print_json(found)
    else:
        _show(found)
    return 0


def _show(found: list[SnapshotSummary]) -> None:
    rows = [
        (
            facts["name"],
            str(facts["machine"]),
            when(facts["taken"]),
            "disks" if facts["memory"] is None else "memory",
            format_size(facts["own"]),
            format_size(facts["shared"]),
            facts["parent"] or "-",
        )
        for facts in found
    ]
    table(("NAME", "MACHINE", "TAKEN", "KIND", "OWN", "SHARED", "PARENT"), rows)
