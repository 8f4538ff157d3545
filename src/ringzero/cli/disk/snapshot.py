"""`ringzero disk snapshot`."""

from __future__ import annotations

import dataclasses
import datetime
from typing import TYPE_CHECKING

from ringzero.cli.disk_action import ACTIONS, Action, add_common, open_for, wants_json
from ringzero.cli.verb import print_json
from ringzero.errors import DiskUnsupportedError, InvalidValueError
from ringzero.units import format_size

if TYPE_CHECKING:
    import argparse


@ACTIONS.register("snapshot")
class Snapshots(Action):
    summary = "list, make, apply and delete snapshots inside an image"
    examples = """\
  ringzero disk snapshot -c before-upgrade disk.qcow2
  ringzero disk snapshot -l disk.qcow2
  ringzero disk snapshot -a before-upgrade disk.qcow2
  ringzero disk snapshot -d snapshot.id=2 disk.qcow2

As in qemu-img, -d takes a name, and -a an id or else a name. snapshot.id=ID and
snapshot.name=NAME say which is meant.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("-f", "--format", metavar="FMT", help="default: found by content")
        which = parser.add_mutually_exclusive_group()
        add = which.add_argument
        add("-l", "--list", action="store_true", help="the default")
        add("-c", "--create", metavar="NAME")
        add("-a", "--apply", metavar="NAME")
        add("-d", "--delete", metavar="NAME")
        parser.add_argument("filename")
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        given = (arguments.create, arguments.apply, arguments.delete)
        change = next((name for name in given if name is not None), None)
        if change == "":
            raise InvalidValueError("the name of the snapshot is empty", hint="give it a name")
        with open_for(arguments.filename, arguments.format, write=bool(change)) as disk:
            snapshots = disk.snapshots
            if snapshots is None:
                raise DiskUnsupportedError(
                    f"a {disk.format} image has no snapshots inside",
                    hint="make an overlay instead: `ringzero disk create -f qcow2 -b FILE`",
                )
            if arguments.create:
                snapshots.create(arguments.create)
            elif arguments.apply:
                snapshots.apply(arguments.apply)
            elif arguments.delete:
                snapshots.delete(arguments.delete)
            found = list(snapshots.list())
        if wants_json(arguments):
            print_json([dataclasses.asdict(snapshot) for snapshot in found])
        elif not change:
            print(f"{'ID':<6}{'DATE':<21}{'VM SIZE':<11}TAG")
            for one in found:
                date = datetime.datetime.fromtimestamp(one.date).strftime("%Y-%m-%d %H:%M:%S")
                print(f"{one.id:<6}{date:<21}{format_size(one.vm_state):<11}{one.name}")
        return 0
