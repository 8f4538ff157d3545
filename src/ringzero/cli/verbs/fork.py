"""`ringzero fork`: running copies of a running machine."""

from __future__ import annotations

import argparse

from ringzero.cli.machines import add_json, add_name, named
from ringzero.cli.verb import VERBS, Verb, print_json


@VERBS.register("fork")
class Fork(Verb):
    summary = "make running copies of a running machine, in milliseconds"
    examples = """\
  ringzero fork web                            web-1
  ringzero fork web --count 10                 ten more, with the next free numbers
  ringzero fork web --count 3 --name test-%    test-1, test-2, test-3
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags and the name."""
        add = parser.add_argument
        add("--count", "-n", metavar="N", type=int, default=1, help="how many (default: 1)")
        add(
            "--name",
            metavar="PATTERN",
            dest="pattern",
            default="",
            help="the copies' names, with %% for their number (default: NAME-%%)",
        )
        add_json(parser)
        add_name(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Make them and print their names."""
        made = named(arguments).fork(arguments.count, arguments.pattern)
        if arguments.json:
            print_json([machine.directory.summary() for machine in made])
        else:
            for machine in made:
                print(machine.name)
        return 0
