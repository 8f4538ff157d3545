"""`ringzero kill`: end machines at once."""

from __future__ import annotations

import argparse

from ringzero.cli.machines import add_json, add_name, for_each
from ringzero.cli.verb import VERBS, Verb


@VERBS.register("kill")
class Kill(Verb):
    summary = "end machines at once, as if the power had failed"
    examples = "  ringzero kill web\n"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the names."""
        add_json(parser)
        add_name(parser, several=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        """End them and print their names."""
        return for_each(arguments, lambda machine: machine.kill())
