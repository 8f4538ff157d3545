"""`ringzero disk map`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from ringzero.cli.disk_action import ACTIONS, Action, add_common, open_for, options, wants_json
from ringzero.units import parse_size

if TYPE_CHECKING:
    import argparse

    from ringzero.disk import Extent


@ACTIONS.register("map")
class Map(Action):
    summary = "say which file holds which part of a disk"
    examples = "  ringzero disk map --json overlay.qcow2\n"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("-f", "--format", metavar="FMT", help="default: found by content")
        add("-s", "--start-offset", metavar="SIZE", default="0")
        add("-l", "--max-length", metavar="SIZE")
        add("-U", "--force-share", action="store_true", help="even while somebody is writing to it")
        add("filename")
        add_common(parser, opens=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.disk import qemujson

        as_json = wants_json(arguments)
        tell = _all if arguments.json else qemujson.map_entry
        with open_for(
            arguments.filename,
            arguments.format,
            lock=not arguments.force_share,
            options=options(arguments.open),
        ) as disk:
            start = parse_size(arguments.start_offset)
            length = disk.size - start
            if arguments.max_length is not None:
                length = min(length, parse_size(arguments.max_length))
            if not as_json:
                print(f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File")
            formats = [layer.format for layer in disk.chain()]
            first = True
            for extent in disk.block_status(start, length):
                if as_json:
                    sys.stdout.write("[" if first else ",\n")
                    json.dump(tell(extent, formats[extent.depth]), sys.stdout)
                    first = False
                elif not extent.reads_zero:
                    host = "compressed" if extent.host is None else f"{extent.host:#x}"
                    place = f"{extent.offset:#x}", f"{extent.length:#x}", host
                    print("".join(f"{word:<16}" for word in place) + (extent.path or ""))
            if as_json:
                print("[]" if first else "]")
        return 0


def _all(extent: Extent, format: str) -> dict[str, Any]:
    """Return what qemu-img tells, with the file and what is compressed."""
    from ringzero.disk import Kind, qemujson

    plain = qemujson.map_entry(extent, format)
    if extent.kind is Kind.COMPRESSED:
        plain["compressed"] = True
    elif extent.host is not None:
        plain["filename"] = extent.path
    return plain
