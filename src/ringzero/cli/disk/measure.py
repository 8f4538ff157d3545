"""`ringzero disk measure`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringzero.cli.disk_action import (
    ACTIONS,
    Action,
    add_common,
    format_name,
    open_for,
    options,
    wants_json,
)
from ringzero.cli.verb import print_json

if TYPE_CHECKING:
    import argparse


@ACTIONS.register("measure")
class Measuring(Action):
    summary = "say how large an image would be"
    examples = """\
  ringzero disk measure -O qcow2 disk.raw
  ringzero disk measure -O vhdx --size 100G
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("-f", "--format", metavar="FMT", help="of the source")
        add("-O", "--target-format", metavar="FMT", default="raw", help="default: raw")
        add("-o", "--options", metavar="NAME=VALUE,...", action="append", help="of the target")
        add("--size", metavar="SIZE", help="of a new and empty disk")
        add("-l", "--snapshot", metavar="NAME", help="measure this snapshot of the source")
        add("-U", "--force-share", action="store_true", help="even while somebody is writing to it")
        add("filename", nargs="?")
        add_common(parser, opens=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        import contextlib

        from ringzero.disk.measure import measure, wanted_size
        from ringzero.units import parse_size

        size = None if arguments.size is None else parse_size(arguments.size)
        opening = options(arguments.open)
        if arguments.snapshot:
            opening["snapshot"] = arguments.snapshot.removeprefix("snapshot.name=")
        with contextlib.ExitStack() as stack:
            source = None
            if arguments.filename is not None:
                source = stack.enter_context(
                    open_for(
                        arguments.filename,
                        arguments.format,
                        lock=not arguments.force_share,
                        options=opening,
                    )
                )
            found = measure(
                format_name(arguments.target_format) or "raw",
                -(-wanted_size(source, size) // 512) * 512,
                source,
                options(arguments.options),
            )
        bitmaps = {} if found.bitmaps is None else {"bitmaps": found.bitmaps}
        if wants_json(arguments):
            print_json(
                {"required": found.required, "fully-allocated": found.fully_allocated, **bitmaps}
            )
        else:
            print(f"required size: {found.required}")
            print(f"fully allocated size: {found.fully_allocated}")
            if found.bitmaps is not None:
                print(f"bitmaps size: {found.bitmaps}")
        return 0
