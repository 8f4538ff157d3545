"""`ringzero snapshot revert`."""

from __future__ import annotations

import argparse

from ringzero.cli.machines import add_name, named
from ringzero.cli.snapshot_action import ACTIONS, add_common, store
from ringzero.cli.verb import Verb, print_json
from ringzero.errors import StateError


@ACTIONS.register("revert")
class Revert(Verb):
    summary = "take a machine, running or not, back to one of its snapshots"
    examples = """\
  ringzero snapshot revert web ready
  ringzero snapshot save web now && ringzero snapshot revert web ready

Memory, state and disks become what they were, and the machine goes on from there. What they are
now is lost, the content of its disk images included: save it first to keep it.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_name(parser)
        parser.add_argument("snapshot", metavar="SNAPSHOT", help="a snapshot's name")
        parser.add_argument(
            "--verify", action="store_true", help="read all of the snapshot first, and check it"
        )
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        machine, snapshot = named(arguments), store().get(arguments.snapshot)
        faults = snapshot.check() if arguments.verify else []
        if faults:
            raise StateError(f"{snapshot.name} is damaged: {faults[0]}")
        machine.revert(str(snapshot.path))
        if arguments.json:
            print_json(machine.directory.summary())
        else:
            print(machine.name)
        return 0
