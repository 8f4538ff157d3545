"""`ringzero volume`: disks in storage pools."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ringzero.api.values import VolumeSummary
from ringzero.cli.machines import add_json, table
from ringzero.cli.verb import AS_IS, THERE, VERBS, Away, Verb, print_json
from ringzero.errors import InvalidValueError, NotFoundError

if TYPE_CHECKING:
    from ringzero.control.host.operations import HostOperations

# As `ringzero.storage.pools` has it, which is not loaded for help.
_DEFAULT = "default"


@VERBS.register("volume")
class VolumeVerb(Verb):
    summary = "disks in storage pools"
    away = Away(AS_IS, actions=True, files={"backing": THERE})
    examples = """\
  ringzero volume create data.qcow2 20G
  ringzero run --disk "$(ringzero volume inspect data.qcow2 --path)" ...
  ringzero volume create top.qcow2 --backing /images/debian.qcow2
  ringzero volume clone data.qcow2 copy.qcow2
  ringzero volume resize data.qcow2 30G
  ringzero volume ls
  ringzero volume rm data.qcow2
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
            if name != "ls":
                sub.add_argument(
                    "--pool", default=_DEFAULT, help="its storage pool (default: default)"
                )
            sub.set_defaults(act=act)
            return sub

        create = command("create", _create, "make a volume")
        create.add_argument("name", metavar="VOLUME", help="its name: a file's")
        create.add_argument("size", metavar="SIZE", nargs="?", help="as 20G; else its backing's")
        create.add_argument("-f", "--format", default="qcow2", help="default: qcow2")
        create.add_argument("-b", "--backing", metavar="FILE", help="the image below it")
        create.add_argument("-F", "--backing-format", metavar="FMT", help="that one's format")
        listing = command("ls", _list, "list volumes")
        listing.add_argument("--pool", default=None, help="of this storage pool (default: all)")
        listing.add_argument("-q", "--quiet", action="store_true", help="names only")
        inspect = command("inspect", _inspect, "tell all about a volume, as JSON")
        inspect.add_argument("name", metavar="VOLUME", help="its name")
        inspect.add_argument("--path", action="store_true", help="where its file is, only")
        clone = command("clone", _clone, "make a volume with the content of another")
        clone.add_argument("source", metavar="VOLUME", help="the other's name")
        clone.add_argument("name", metavar="NEW", help="its name")
        clone.add_argument("-f", "--format", default=None, help="default: the other's")
        resize = command("resize", _resize, "give a volume another size")
        resize.add_argument("name", metavar="VOLUME", help="its name")
        resize.add_argument("size", metavar="SIZE", help="as 30G")
        resize.add_argument("--shrink", action="store_true", help="also where data is cut off")
        remove = command("rm", _remove, "remove volumes that are not in use")
        remove.add_argument("names", metavar="VOLUME", nargs="+", help="a volume's name")
        remove.add_argument(
            "-f", "--force", action="store_true", help="also where others lie above it"
        )

    def execute(self, arguments: argparse.Namespace) -> int:
        """Do it."""
        from ringzero.cli.target import host

        found = arguments.act(host(), arguments)
        if arguments.json:
            print_json(found)
        return 0


def _create(host: HostOperations, arguments: argparse.Namespace) -> VolumeSummary:
    from pathlib import Path

    from ringzero.units import parse_size

    if arguments.size is None and arguments.backing is None:
        raise InvalidValueError(
            "the volume's size is not given", hint="`ringzero volume create NAME 20G`"
        )
    backing = arguments.backing
    made = host.create_volume(
        arguments.name,
        capacity=None if arguments.size is None else parse_size(arguments.size),
        pool=arguments.pool,
        format=arguments.format,
        backing=None if backing is None else str(Path(backing).absolute()),
        backing_format=arguments.backing_format,
    )
    return _told(made, arguments)


def _clone(host: HostOperations, arguments: argparse.Namespace) -> VolumeSummary:
    made = host.clone_volume(
        arguments.source, arguments.name, pool=arguments.pool, format=arguments.format
    )
    return _told(made, arguments)


def _resize(host: HostOperations, arguments: argparse.Namespace) -> VolumeSummary:
    from ringzero.units import parse_size

    changed = host.resize_volume(
        arguments.name, parse_size(arguments.size), pool=arguments.pool, shrink=arguments.shrink
    )
    return _told(changed, arguments)


def _told(volume: VolumeSummary, arguments: argparse.Namespace) -> VolumeSummary:
    if not arguments.json:
        print(volume["path"])
    return volume


def _list(host: HostOperations, arguments: argparse.Namespace) -> list[VolumeSummary]:
    from ringzero.units import format_size

    found = host.volumes(arguments.pool)
    if arguments.quiet and not arguments.json:
        for volume in found:
            print(volume["name"])
    elif not arguments.json:
        rows = [
            (
                volume["name"],
                volume["pool"],
                volume["format"],
                format_size(volume["capacity"]),
                format_size(volume["allocation"]),
            )
            for volume in found
        ]
        table(("NAME", "POOL", "FORMAT", "SIZE", "TAKES"), rows)
    return found


def _inspect(host: HostOperations, arguments: argparse.Namespace) -> VolumeSummary:
    for volume in host.volumes(arguments.pool):
        if volume["name"] == arguments.name:
            if arguments.path and not arguments.json:
                print(volume["path"])
            else:
                arguments.json = True
            return volume
    raise NotFoundError(
        f"no volume called {arguments.name!r} in the storage pool {arguments.pool!r}",
        hint="`ringzero volume ls` lists them",
    )


def _remove(host: HostOperations, arguments: argparse.Namespace) -> list[str]:
    for name in arguments.names:
        host.remove_volume(name, pool=arguments.pool, force=arguments.force)
        if not arguments.json:
            print(name, flush=True)
    return list(arguments.names)
