"""`ringzero pause`."""

from __future__ import annotations

import argparse

from ringzero.cli.machines import add_json, add_name, for_each
from ringzero.cli.verb import VERBS, Verb


@VERBS.register("pause")
class Pause(Verb):
    summary = "stop machines where they are, until `resume`"
    examples = "  ringzero pause web\n"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the names."""
        add_json(parser)
        add_name(parser, several=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Do it and print the names."""
        return for_each(arguments, lambda machine: machine.pause())
