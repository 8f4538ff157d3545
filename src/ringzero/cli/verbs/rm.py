"""`ringzero rm`: remove machines."""

from __future__ import annotations

import argparse

from ringzero.cli.machines import add_json, add_name, for_each
from ringzero.cli.verb import VERBS, Verb


@VERBS.register("rm")
class Rm(Verb):
    summary = "remove machines that ended, with what is kept of them"
    examples = """\
  ringzero rm web
  ringzero rm -f web      end it first
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags and names."""
        parser.add_argument("-f", "--force", action="store_true", help="end running ones first")
        add_json(parser)
        add_name(parser, several=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Remove them and print their names."""
        return for_each(arguments, lambda machine: machine.remove(force=arguments.force))
