"""`ringzero snapshot restore`."""

from __future__ import annotations

import argparse

from ringzero.cli.snapshot_action import ACTIONS, add_common, store
from ringzero.cli.verb import Verb, print_json
from ringzero.errors import StateError


@ACTIONS.register("restore")
class Restore(Verb):
    summary = "start a machine that goes on from a snapshot"
    examples = """\
  ringzero snapshot restore ready
  ringzero snapshot restore ready --name web2
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("snapshot", metavar="SNAPSHOT", help="a snapshot's name")
        parser.add_argument(
            "--name", help="the new machine's name (default: SNAPSHOT-1, or the next that is free)"
        )
        parser.add_argument(
            "--verify", action="store_true", help="read all of the snapshot first, and check it"
        )
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.control.host import claims
        from ringzero.control.host.launch import launch
        from ringzero.image.micro import image_of

        snapshot = store().get(arguments.snapshot)
        faults = snapshot.check() if arguments.verify else []
        if faults:
            raise StateError(f"{snapshot.name} is damaged: {faults[0]}")
        name = arguments.name or f"{snapshot.name[:50]}-1"
        config = snapshot.manifest.machine_config()
        claim = claims.create(
            name,
            config,
            image=image_of(config.kernel),
            snapshot=str(snapshot.path),
            again=None if arguments.name else claims.next_number,
        )
        machine = launch(claim)
        if arguments.json:
            print_json(machine.summary())
        else:
            print(machine.name)
        return 0
