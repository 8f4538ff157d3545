"""`ringzero help`: the same as --help."""

from __future__ import annotations

import argparse

from ringzero.cli.verb import HERE, VERBS, Away, Verb


@VERBS.register("help")
class Help(Verb):
    summary = "tell about the commands, or about one"
    away = Away(HERE)
    examples = """\
  ringzero help
  ringzero help run
  ringzero help disk convert
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the words."""
        parser.add_argument("--json", action="store_true", help="errors as JSON")
        parser.add_argument("words", nargs="*", metavar="COMMAND", help="the command's words")

    def execute(self, arguments: argparse.Namespace) -> int:
        """Print the help of a command."""
        from ringzero.cli.main import main

        return main([*arguments.words, "--help"])
