"""`ringzero disk resize`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringzero.cli.disk_action import ACTIONS, Action, add_common, open_for, options, wants_json
from ringzero.cli.verb import print_json
from ringzero.errors import InvalidValueError

if TYPE_CHECKING:
    import argparse


@ACTIONS.register("resize")
class Resize(Action):
    summary = "make a disk longer or shorter"
    examples = """\
  ringzero disk resize disk.qcow2 +10G
  ringzero disk resize --shrink disk.qcow2 5G
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("-f", "--format", metavar="FMT", help="default: found by content (never raw)")
        add("--shrink", action="store_true", help="allow what would cut off data")
        add("filename")
        add("size", help="20G, or +10G, or -10G")
        add_common(parser, opens=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.units import format_size, parse_size

        text = arguments.size
        change = parse_size(text.lstrip("+-"))
        with open_for(
            arguments.filename, arguments.format, write=True, options=options(arguments.open)
        ) as disk:
            size = {"+": disk.size + change, "-": disk.size - change}.get(text[0], change)
            size = -(-size // 512) * 512
            if size < disk.size and not arguments.shrink:
                raise InvalidValueError(
                    f"the disk would lose its last {format_size(disk.size - size)}",
                    hint="make its file systems smaller first, then use --shrink",
                )
            disk.resize(size)
        if wants_json(arguments):
            print_json({"filename": arguments.filename, "virtual-size": size})
        elif not arguments.quiet:
            print(f"{arguments.filename}: {format_size(size)}")
        return 0
