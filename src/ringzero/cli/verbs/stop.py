"""`ringzero stop`: switch machines off in order."""

from __future__ import annotations

import argparse

from ringzero.cli.machines import add_json, add_name, for_each
from ringzero.cli.verb import VERBS, Verb


@VERBS.register("stop")
class Stop(Verb):
    summary = "have machines switch themselves off"
    examples = """\
  ringzero stop web
  ringzero stop --timeout 60 db      a minute for its disks, then the power goes
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags and names."""
        parser.add_argument(
            "--timeout",
            metavar="S",
            type=float,
            default=10.0,
            help="seconds until a guest that goes on is ended (default: 10)",
        )
        add_json(parser)
        add_name(parser, several=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Stop them one after the other and print their names."""
        return for_each(arguments, lambda machine: machine.stop(arguments.timeout))
