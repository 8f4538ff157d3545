"""`ringzero start`."""

from __future__ import annotations

import argparse

from ringzero.cli.machines import add_json, add_name, for_each
from ringzero.cli.verb import VERBS, Verb


@VERBS.register("start")
class Start(Verb):
    summary = "start machines again that have ended, as they were described"
    examples = """\
  ringzero start web
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the names."""
        add_json(parser)
        add_name(parser, several=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Start them and print their names."""
        return for_each(arguments, lambda machine: machine.start())
