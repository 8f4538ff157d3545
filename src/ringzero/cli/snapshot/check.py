"""`ringzero snapshot check`."""

from __future__ import annotations

import argparse

from ringzero.cli.snapshot_action import ACTIONS, add_common, store
from ringzero.cli.verb import Verb, print_json
from ringzero.errors import StateError


@ACTIONS.register("check")
class Check(Verb):
    summary = "read all of a snapshot and say what is wrong with it"
    examples = """\
  ringzero snapshot check ready
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("snapshot", metavar="SNAPSHOT", help="a snapshot's name")
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        faults = store().get(arguments.snapshot).check()
        if arguments.json:
            print_json({"name": arguments.snapshot, "faults": faults})
        else:
            for fault in faults or ["sound"]:
                print(f"{arguments.snapshot}: {fault}")
        return StateError.exit_code if faults else 0
