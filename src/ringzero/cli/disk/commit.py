"""`ringzero disk commit`."""

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
from ringzero.errors import DiskUnsupportedError, InvalidValueError

if TYPE_CHECKING:
    import argparse


@ACTIONS.register("commit")
class Commit(Action):
    summary = "write what an overlay holds into its backing file"
    examples = """\
  ringzero disk commit overlay.qcow2
  ringzero disk commit -b base.qcow2 top.qcow2
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("-f", "--format", metavar="FMT", help="default: found by content")
        add("-b", "--base", metavar="FILE", help="which layer to write into (default: the next)")
        add("-d", "--keep", action="store_true", help="do not empty the overlay afterwards")
        add("filename")
        add_common(parser, progress=True)

    def execute(self, arguments: argparse.Namespace) -> int:
        from pathlib import Path

        from ringzero.disk import open_disk
        from ringzero.disk.layers import commit

        # The layers below are locked for reading by an open chain, so the
        # base is opened for writing with its lock and the chain without.
        with open_for(arguments.filename, arguments.format) as top:
            layers = top.chain()[1:]
            if not layers:
                raise InvalidValueError(f"{arguments.filename} has no backing file")
            wanted = Path(arguments.base) if arguments.base else layers[0].path
            named = [one for one in layers if wanted and one.path and one.path.samefile(wanted)]
            if not named:
                raise InvalidValueError(f"{arguments.base} is not below {arguments.filename}")
            base = named[0]
            path, kind = base.path, base.format
            name, name_format, top_format = top.backing_name, top.backing_format, top.format
            next_below = base is layers[0]
        assert path is not None
        with (
            open_disk(path, kind) as target,
            open_for(arguments.filename, top_format, lock=False) as source,
            progress(arguments, "commit", source.size) as tell,
        ):
            commit(source, target, on_progress=tell)
        if not arguments.keep and next_below:
            with open_disk(arguments.filename, top_format, backing=False) as top:
                try:
                    top.make_empty()
                except DiskUnsupportedError:
                    if not arguments.quiet:
                        print(f"{arguments.filename} is left as it was")
                if top_format != "qcow2":
                    # These formats know their parent by a number that has just changed.
                    top.change_backing(name, name_format)
        if wants_json(arguments):
            print_json({"base": str(path)})
        elif not arguments.quiet:
            print(f"Image committed into {path}.")
        return 0
