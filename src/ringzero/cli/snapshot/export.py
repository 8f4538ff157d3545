"""`ringzero snapshot export`."""

from __future__ import annotations

import argparse

from ringzero.cli.snapshot_action import ACTIONS, add_common, store
from ringzero.cli.verb import CARRIED, FETCHED, Away, Verb, print_json
from ringzero.units import format_size


@ACTIONS.register("export")
class Export(Verb):
    summary = "write a snapshot to one file, to be carried elsewhere"
    away = Away(CARRIED, files={"file": FETCHED})
    examples = """\
  ringzero snapshot export ready ready.rzs
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("snapshot", metavar="SNAPSHOT", help="a snapshot's name")
        parser.add_argument("file", metavar="FILE", help="the file to write")
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from pathlib import Path

        from ringzero.vm.saved.transfer import export

        size = export(store().get(arguments.snapshot), Path(arguments.file))
        if arguments.json:
            print_json({"file": arguments.file, "size": size})
        else:
            print(f"{arguments.file}  {format_size(size)}")
        return 0
