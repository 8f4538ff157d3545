"""`ringzero disk compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringzero.cli.disk_action import (
    ACTIONS,
    Action,
    add_common,
    open_for,
    progress,
    wants_json,
)
from ringzero.cli.verb import print_json

if TYPE_CHECKING:
    import argparse


@ACTIONS.register("compare")
class Compare(Action):
    summary = "say whether two images hold the same disk"
    examples = """\
  ringzero disk compare disk.vmdk disk.vhdx

Exit code: 0 identical, 1 different.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("-f", "--format", metavar="FMT", help="of the first (default: found by content)")
        add("-F", "--second-format", metavar="FMT", help="of the second")
        add("-s", "--strict", action="store_true", help="also sizes and allocation")
        add("-U", "--force-share", action="store_true", help="even while somebody is writing")
        add("first")
        add("second")
        add_common(parser, progress=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.disk.compare import compare

        lock = not arguments.force_share
        with (
            open_for(arguments.first, arguments.format, lock=lock) as first,
            open_for(arguments.second, arguments.second_format, lock=lock) as second,
            progress(arguments, "compare", max(first.size, second.size)) as tell,
        ):
            found = compare(first, second, strict=arguments.strict, on_progress=tell)
        if wants_json(arguments):
            print_json({"identical": found is None, "offset": found.offset if found else None})
        elif not arguments.quiet:
            print("Images are identical." if found is None else f"{found}!")
        return 0 if found is None else 1
