"""`ringzero image diff`."""

from __future__ import annotations

import argparse

from ringzero.cli.image_action import ACTIONS, add_image, add_json, one
from ringzero.cli.text import printable
from ringzero.cli.verb import Verb, print_json

# As `docker diff` has them.
_LETTERS = {"added": "A", "changed": "C", "removed": "D"}


@ACTIONS.register("diff")
class Difference(Verb):
    summary = "say which files two images differ in"
    examples = """\
  ringzero image diff web:1 web:2     A added, C changed, D removed; sizes before and after
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_image(parser, "before", "FIRST")
        add_image(parser, "after", "SECOND")
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.host.progress import Progress
        from ringzero.image.oci.difference import difference
        from ringzero.plain import to_plain
        from ringzero.units import format_size

        found = difference(one(arguments.before), one(arguments.after), Progress())
        if arguments.json:
            print_json([to_plain(change) for change in found])
            return 0
        for change in found:
            sizes = [format_size(size) for size in (change.before, change.after) if size]
            print("  ".join([f"{_LETTERS[change.kind]} {printable(change.path)}", *sizes]))
        grown = sum(change.after - change.before for change in found)
        sign = "-" if grown < 0 else "+"
        print(f"{len(found)} differ, {sign}{format_size(abs(grown))}")
        return 0
