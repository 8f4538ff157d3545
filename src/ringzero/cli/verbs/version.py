"""`ringzero version`."""

from __future__ import annotations

import argparse
import platform

import ringzero
from ringzero.cli.verb import AS_IS, VERBS, Away, Verb, print_json


@VERBS.register("version")
class Version(Verb):
    summary = "print the version"
    away = Away(AS_IS)
    examples = "  ringzero version --json\n"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags."""
        parser.add_argument("--json", action="store_true", help="for programs")

    def execute(self, arguments: argparse.Namespace) -> int:
        """Print it."""
        if arguments.json:
            print_json({"ringzero": ringzero.__version__, "python": platform.python_version()})
        else:
            print(f"ringzero {ringzero.__version__}")
        return 0
