"""`ringzero snapshot diff`."""

from __future__ import annotations

import argparse

from ringzero.cli.snapshot_action import ACTIONS, add_common, store
from ringzero.cli.verb import Verb, print_json
from ringzero.units import format_size


@ACTIONS.register("diff")
class Difference(Verb):
    summary = "say in what two snapshots differ"
    examples = """\
  ringzero snapshot diff ready later
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("snapshot", metavar="FIRST", help="a snapshot's name")
        parser.add_argument("other", metavar="SECOND", help="another one's")
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.vm.saved.compare import difference

        place = store()
        found = difference(place.get(arguments.snapshot), place.get(arguments.other))
        if arguments.json:
            print_json(found)
            return 0
        print(f"time     {found['seconds']:+.3f} s")
        for field, (before, after) in found["config"].items():
            print(f"config   {field}: {before} -> {after}")
        if found["memory"] is not None:
            print(f"memory   {found['memory']['pages']} pages")
        for number, disk in enumerate(found["disks"]):
            print(f"disk {number}   {format_size(disk['bytes'])}")
        print(f"devices  {', '.join(found['devices']) or 'none'}")
        return 0
