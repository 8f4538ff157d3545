"""`ringzero storage`: directories whose files are volumes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ringzero.api.values import StoragePoolSummary
from ringzero.cli.machines import add_json, table
from ringzero.cli.verb import AS_IS, THERE, VERBS, Away, Verb, print_json

if TYPE_CHECKING:
    from ringzero.control.host.operations import HostOperations


@VERBS.register("storage")
class Storage(Verb):
    summary = "storage pools: directories whose files are volumes"
    away = Away(AS_IS, actions=True, files={"path": THERE})
    examples = """\
  ringzero storage create fast /mnt/ssd
  ringzero volume create data.qcow2 20G --pool fast
  ringzero storage ls
  ringzero storage stop fast; ringzero storage rm fast       its directory and files stay
  ringzero storage start fast
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the commands, each with its own arguments."""
        commands = parser.add_subparsers(dest="command_name", metavar="COMMAND", required=True)

        def command(
            name: str, act: Callable[[HostOperations, argparse.Namespace], Any], text: str
        ) -> argparse.ArgumentParser:
            sub: argparse.ArgumentParser = commands.add_parser(
                name, help=text, description=f"{text[0].upper()}{text[1:]}."
            )
            add_json(sub)
            sub.set_defaults(act=act)
            return sub

        create = command("create", _create, "make a storage pool of a directory")
        create.add_argument("name", metavar="POOL", help="its name")
        create.add_argument("path", metavar="DIRECTORY", help="made, where it is missing")
        command("ls", _list, "list the storage pools")
        for name, act, text in (
            ("start", _start, "make storage pools active"),
            ("stop", _stop, "make storage pools inactive: they have no volumes"),
            ("rm", _remove, "forget storage pools that are not active; files stay"),
        ):
            sub = command(name, act, text)
            sub.add_argument("names", metavar="POOL", nargs="+", help="a storage pool's name")

    def execute(self, arguments: argparse.Namespace) -> int:
        """Do it."""
        from ringzero.cli.target import host

        found = arguments.act(host(), arguments)
        if arguments.json:
            print_json(found)
        return 0


def _create(host: HostOperations, arguments: argparse.Namespace) -> StoragePoolSummary:
    from pathlib import Path

    made = host.define_storage_pool(arguments.name, str(Path(arguments.path).absolute()))
    if not arguments.json:
        print(f"{made['name']}  {made['path']}")
    return made


def _list(host: HostOperations, arguments: argparse.Namespace) -> list[StoragePoolSummary]:
    from ringzero.units import format_size

    found = host.storage_pools()
    if not arguments.json:
        rows = [
            (
                pool["name"],
                "active" if pool["active"] else "inactive",
                str(pool["volumes"]),
                format_size(pool["available"]),
                pool["path"],
            )
            for pool in found
        ]
        table(("NAME", "STATE", "VOLUMES", "FREE", "DIRECTORY"), rows)
    return found


def _start(host: HostOperations, arguments: argparse.Namespace) -> list[StoragePoolSummary]:
    return _each(arguments, lambda name: host.change_storage_pool(name, active=True))


def _stop(host: HostOperations, arguments: argparse.Namespace) -> list[StoragePoolSummary]:
    return _each(arguments, lambda name: host.change_storage_pool(name, active=False))


def _remove(host: HostOperations, arguments: argparse.Namespace) -> list[Any]:
    return _each(arguments, host.undefine_storage_pool)


def _each(arguments: argparse.Namespace, act: Callable[[str], Any]) -> list[Any]:
    found = []
    for name in arguments.names:
        found.append(act(name))
        if not arguments.json:
            print(name, flush=True)
    return found
