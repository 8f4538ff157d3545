"""`ringzero inspect`: everything about one machine."""

from __future__ import annotations

import argparse

from ringzero.cli.machines import add_json, add_name, named
from ringzero.cli.verb import AS_IS, VERBS, Away, Verb, print_json


@VERBS.register("inspect")
class Inspect(Verb):
    summary = "tell everything about one machine, as JSON"
    away = Away(AS_IS, actions=True)
    examples = """\
  ringzero inspect web
  ringzero inspect web | jq .stats
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the name."""
        add_json(parser)
        add_name(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Print it; JSON is the only form."""
        print_json(named(arguments).inspect())
        return 0
