"""`ringzero disk repair`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringzero.cli.disk.check import check
from ringzero.cli.disk_action import ACTIONS, Action, add_common

if TYPE_CHECKING:
    import argparse


@ACTIONS.register("repair")
class Mend(Action):
    summary = "mend an image: `check -r all`"
    examples = "  ringzero disk repair disk.qcow2\n"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("-f", "--format", metavar="FMT", help="default: found by content")
        add("--leaks", action="store_true", help="only give leaked clusters back")
        add("filename")
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.disk import Repair

        return check(arguments, Repair.LEAKS if arguments.leaks else Repair.ALL)
