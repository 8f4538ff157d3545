"""`ringzero host`: names for other hosts, for --host."""

from __future__ import annotations

import argparse
from pathlib import Path

from ringzero.cli.machines import add_json, table
from ringzero.cli.verb import HERE, VERBS, Away, Verb, print_json


@VERBS.register("host")
class HostVerb(Verb):
    summary = "names for other hosts, for `ringzero --host NAME COMMAND`"
    away = Away(HERE)
    examples = """\
  ringzero host add lab ssh://ana@lab.example.org
  ringzero --host lab ps                       or: export RINGZERO_HOST=lab
  ringzero host add ci https://ci.example.org:8443 --token-file ~/.ci-token --cacert ca.pem
  ringzero host ls
  ringzero host rm lab

docs/remote.md tells what can be done on another host.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the commands, each with its own arguments."""
        commands = parser.add_subparsers(dest="command_name", metavar="COMMAND", required=True)
        add = commands.add_parser("add", help="name a host", description="Name a host.")
        add.add_argument("name", metavar="NAME", help="what --host calls it")
        add.add_argument(
            "url", metavar="URL", help="ssh://[USER@]HOST[:PORT][/PATH], https://HOST[:PORT], unix:"
        )
        add.add_argument("--token-file", metavar="FILE", type=Path, help="a file with a token")
        add.add_argument("--cacert", metavar="FILE", type=Path, help="who signs its certificate")
        listing = commands.add_parser("ls", help="list the hosts", description="List the hosts.")
        listing.add_argument("-q", "--quiet", action="store_true", help="print names only")
        remove = commands.add_parser("rm", help="forget hosts", description="Forget hosts.")
        remove.add_argument("hosts", metavar="NAME", nargs="+", help="a host's name")
        for sub, act in ((add, _add), (listing, _list), (remove, _remove)):
            add_json(sub)
            sub.set_defaults(act=act)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Do it."""
        found = arguments.act(arguments)
        if arguments.json:
            print_json(found)
        return 0


def _add(arguments: argparse.Namespace) -> dict[str, str]:
    from ringzero.remote.hosts import Hosts, NamedHost

    def kept(path: Path | None) -> str:
        return "" if path is None else str(path.absolute())

    host = NamedHost(
        arguments.name, arguments.url, kept(arguments.token_file), kept(arguments.cacert)
    )
    Hosts().add(host)
    if not arguments.json:
        print(host.name)
    return host.to_dict()


def _list(arguments: argparse.Namespace) -> list[dict[str, str]]:
    from ringzero.remote.hosts import Hosts

    found = Hosts().all()
    if arguments.quiet and not arguments.json:
        for host in found:
            print(host.name)
    elif not arguments.json:
        table(("NAME", "URL"), [(host.name, host.url) for host in found])
    return [host.to_dict() for host in found]


def _remove(arguments: argparse.Namespace) -> list[str]:
    from ringzero.remote.hosts import Hosts

    for name in arguments.hosts:
        Hosts().remove(name)
        if not arguments.json:
            print(name, flush=True)
    return list(arguments.hosts)
