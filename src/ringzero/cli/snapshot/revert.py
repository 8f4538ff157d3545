"""`ringzero snapshot revert`."""

from __future__ import annotations

import argparse

from ringzero.cli.machines import add_name, named
from ringzero.cli.snapshot_action import ACTIONS, add_common, find, store
from ringzero.cli.verb import AS_IS, Away, Verb, print_json
from ringzero.errors import InvalidValueError, StateError


@ACTIONS.register("revert")
class Revert(Verb):
    summary = "take a machine, running or not, back to one of its snapshots"
    away = Away(AS_IS, actions=True)
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
        from ringzero.cli.target import host, remote

        machine = named(arguments)
        if remote() is None:
            snapshot = store().get(arguments.snapshot)
            faults = snapshot.check() if arguments.verify else []
            if faults:
                raise StateError(f"{snapshot.name} is damaged: {faults[0]}")
            place = str(snapshot.path)
        elif arguments.verify:
            raise InvalidValueError(
                "a snapshot cannot be read over the HTTP API",
                hint="`ringzero snapshot check` over --host ssh://HOST",
            )
        else:
            place = find(host(), arguments.snapshot)["directory"]
        machine.revert(place)
        if arguments.json:
            print_json(machine.inspect())
        else:
            print(machine.name)
        return 0
