"""`ringzero disk export`: disks of a running machine for other programs, by NBD."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from ringzero.cli.disk_action import ACTIONS, Action
from ringzero.cli.machines import add_json, add_name, named, table
from ringzero.cli.verb import AS_IS, THERE, Away, print_json
from ringzero.errors import InvalidValueError


@ACTIONS.register("export")
class DiskExport(Action):
    summary = "let other programs use a disk of a running machine by NBD"
    away = Away(AS_IS, actions=True)
    examples = """\
  ringzero disk export web add --unix /tmp/web.sock
  ringzero disk export web add --disk 1 --name data --port 0
  ringzero disk export web               those that there are
  ringzero disk export web rm data

What is read while the guest writes is of no one moment: for that, use `disk job ... start backup`.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add_json(parser)
        add("--disk", type=int, default=0, metavar="N", help="which disk (default: 0)")
        add("--name", default="", help="what clients call it (default: its number)")
        add("--unix", metavar="PATH", help="listen on a socket there, for this user only")
        add("--port", type=int, help="listen on 127.0.0.1; 0: a free port")
        add("--writable", action="store_true", help="clients may change what the guest uses")
        add_name(parser)
        add("order", nargs="?", default="ls", choices=("ls", "add", "rm"))
        add("what", nargs="?", metavar="EXPORT", help="rm: which one (default: all)")

    def files(self, arguments: argparse.Namespace) -> Mapping[str, str]:
        return {"unix": THERE}

    def execute(self, arguments: argparse.Namespace) -> int:
        from pathlib import Path

        machine = named(arguments)
        if arguments.what is not None and arguments.order != "rm":
            raise InvalidValueError("only `rm` takes the name of an export", hint="say --name")
        if arguments.order == "rm":
            machine.unexport_disk(arguments.what or "")
            return 0
        if arguments.order == "add":
            path = str(Path(arguments.unix).absolute()) if arguments.unix else ""
            found = [
                machine.export_disk(
                    arguments.disk,
                    name=arguments.name,
                    writable=arguments.writable,
                    path=path,
                    port=arguments.port,
                )
            ]
        else:
            found = machine.disk_exports()
        if arguments.json:
            print_json(found)
            return 0
        rows = [
            [one["name"], str(one["disk"]), str(one["clients"]),
             "read-only" if one["read_only"] else "writable", one["url"]]
            for one in found
        ]  # fmt: skip
        table(["EXPORT", "DISK", "CLIENTS", "", "URL"], rows)
        return 0
