"""`ringzero disk rebase`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringzero.cli.disk_action import (
    ACTIONS,
    Action,
    add_common,
    format_name,
    open_for,
    progress,
    wants_json,
)
from ringzero.cli.verb import print_json

if TYPE_CHECKING:
    import argparse


@ACTIONS.register("rebase")
class Rebase(Action):
    summary = "give an overlay another backing file"
    examples = """\
  ringzero disk rebase -b new-base.qcow2 overlay.qcow2
  ringzero disk rebase -b '' overlay.qcow2        stand alone from now on
  ringzero disk rebase -u -b moved/base.qcow2 overlay.qcow2

With -u only the name is written; the contents must be the same.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("-f", "--format", metavar="FMT", help="default: found by content")
        add("-b", "--backing", metavar="FILE", required=True, help="'' for none")
        add("-F", "--backing-format", metavar="FMT", help="default: found by content")
        add("-u", "--unsafe", action="store_true", help="write the name, and nothing else")
        add("filename")
        add_common(parser, progress=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.disk import Disk, open_as_backing
        from ringzero.disk.layers import rebase

        name = arguments.backing or None
        kind = format_name(arguments.backing_format)
        new: Disk | None = None
        if name is not None and (kind is None or not arguments.unsafe):
            new = open_as_backing(arguments.filename, name, kind)
            kind = new.format
        try:
            with open_for(
                arguments.filename, arguments.format, write=True, backing=not arguments.unsafe
            ) as top:
                if not arguments.unsafe:
                    with progress(arguments, "rebase", top.size) as tell:
                        rebase(top, top.backing, new, on_progress=tell)
                top.change_backing(name, kind)
        finally:
            if new is not None:
                new.close()
        if wants_json(arguments):
            print_json({"backing-filename": name, "backing-filename-format": kind})
        return 0
