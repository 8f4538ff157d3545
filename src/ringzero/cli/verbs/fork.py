"""`ringzero fork`: running copies of a running machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ringzero.cli.action_verb import MachineVerb, chosen
from ringzero.cli.verb import VERBS, print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping


@VERBS.register("fork")
class Fork(MachineVerb):
    action = "fork"
    several = False
    summary = "make running copies of a running machine, in milliseconds"
    short: ClassVar[Mapping[str, str]] = {"count": "-n"}
    metavars: ClassVar[Mapping[str, str]] = {"name": "PATTERN"}
    examples = """\
  ringzero fork web                            web-1
  ringzero fork web --count 10                 ten more, with the next free numbers
  ringzero fork web --count 3 --name test-%    test-1, test-2, test-3
"""

    def execute(self, arguments: argparse.Namespace) -> int:
        """Make them and print their names."""
        from ringzero.api.table import get
        from ringzero.cli.target import machine

        made = machine(arguments.machine).copies(**chosen(get(self.action), arguments))
        if arguments.json:
            print_json([copy.inspect() for copy in made])
        else:
            for copy in made:
                print(copy.name)
        return 0
