"""`ringzero network`: networks by name, which machines join."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ringzero.api.table import get
from ringzero.api.values import NetworkSummary
from ringzero.cli.machines import add_json, note, table
from ringzero.cli.verb import AS_IS, VERBS, Away, Verb, print_json
from ringzero.errors import NotFoundError

if TYPE_CHECKING:
    from ringzero.control.host.operations import HostOperations

_MODES = ("nat", "isolated", "open")


@VERBS.register("network")
class NetworkVerb(Verb):
    summary = "networks by name, which several machines join"
    away = Away(AS_IS, actions=True)
    examples = """\
  ringzero network create lan
  ringzero run -d --name web --net lan -p 8080:80 -- httpd -f
  ringzero run --net lan -- wget -qO- http://web/       machines know each other's names
  ringzero network create vault --mode isolated --subnet 10.9.8.0/24
  ringzero network inspect lan                          machines, leases, counters
  ringzero network disconnect web; ringzero network connect lan web
  ringzero network stop lan; ringzero network start lan   nobody joins meanwhile
  ringzero network ls
  ringzero network rm lan vault

`ringzero network COMMAND --help` tells more.
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

        create = command("create", _create, "make a network")
        create.add_argument("name", metavar="NETWORK", help="its name")
        create.add_argument(
            "--mode",
            choices=_MODES,
            default="nat",
            help="nat: a way out by the host's sockets (default); isolated: one another and the "
            "host only; open: as nat, without protection against made-up addresses",
        )
        create.add_argument("--subnet", metavar="NET", default="", help="as 10.1.2.0/24")
        create.add_argument(
            "--range", metavar="FIRST-LAST", default="", help="addresses that DHCP gives out"
        )
        create.add_argument(
            "--lease", metavar="MAC=ADDR", action="append", default=[], help="a fixed address"
        )
        create.add_argument(
            "--no-host", action="store_false", dest="host", help="machines do not reach this host"
        )
        create.add_argument(
            "--allow", metavar="PLACE", action="append", help="the only places that they reach"
        )
        listing = command("ls", _list, "list the networks")
        listing.add_argument("-q", "--quiet", action="store_true", help="names only")
        inspect = command("inspect", _inspect, "tell all about networks, as JSON")
        inspect.add_argument("networks", metavar="NETWORK", nargs="+", help="a network's name")
        remove = command("rm", _remove, "remove networks that no machine is on")
        remove.add_argument("networks", metavar="NETWORK", nargs="+", help="a network's name")
        for name, act, text in (
            ("start", _start, "let machines join networks that were stopped"),
            ("stop", _stop, "let no more machines join; those that are on them stay"),
        ):
            sub = command(name, act, text)
            sub.add_argument("networks", metavar="NETWORK", nargs="+", help="a network's name")
        connect = command("connect", _connect, "plug a running machine into a network")
        connect.add_argument("network", metavar="NETWORK", help="as --net of run takes it")
        connect.add_argument("machine", metavar="NAME", help="the machine's name")
        disconnect = command("disconnect", _disconnect, "unplug a running machine")
        disconnect.add_argument("machine", metavar="NAME", help="the machine's name")
        for sub, default in ((connect, -1), (disconnect, 0)):
            sub.add_argument(
                *("--interface", "-i"),
                metavar="N",
                type=int,
                default=default,
                help=_interface_help(sub is connect),
            )

    def execute(self, arguments: argparse.Namespace) -> int:
        """Do it."""
        from ringzero.cli.target import host

        found = arguments.act(host(), arguments)
        if arguments.json:
            print_json(found)
        return 0


def _interface_help(connects: bool) -> str:
    return get("connect" if connects else "disconnect").arguments[-1].help


def _create(host: HostOperations, arguments: argparse.Namespace) -> NetworkSummary:
    found = host.create_network(
        arguments.name,
        mode=arguments.mode,
        subnet=arguments.subnet,
        range=arguments.range,
        leases=arguments.lease,
        host=arguments.host,
        allow=arguments.allow,
    )
    for line in found["notes"]:
        note(line)
    if not arguments.json:
        print(f"{found['name']}  {found['subnet']}")
    return found


def _list(host: HostOperations, arguments: argparse.Namespace) -> list[NetworkSummary]:
    found = host.networks()
    if arguments.quiet and not arguments.json:
        for facts in found:
            print(facts["name"])
    elif not arguments.json:
        rows = [
            (
                facts["name"],
                facts["mode"],
                facts["subnet"],
                facts["gateway"],
                " ".join(machine["name"] for machine in facts["machines"]) or "-",
            )
            for facts in found
        ]
        table(("NAME", "MODE", "SUBNET", "GATEWAY", "MACHINES"), rows)
    return found


def _inspect(host: HostOperations, arguments: argparse.Namespace) -> list[NetworkSummary]:
    known = {facts["name"]: facts for facts in host.networks()}
    for name in arguments.networks:
        if name not in known:
            raise NotFoundError(
                f"no network called {name!r}", hint="`ringzero network ls` lists them"
            )
    # JSON is the only form.
    arguments.json = True
    return [known[name] for name in arguments.networks]


def _remove(host: HostOperations, arguments: argparse.Namespace) -> list[str]:
    for name in arguments.networks:
        host.remove_network(name)
        if not arguments.json:
            print(name, flush=True)
    return list(arguments.networks)


def _start(host: HostOperations, arguments: argparse.Namespace) -> list[NetworkSummary]:
    return _change(host, arguments, active=True)


def _stop(host: HostOperations, arguments: argparse.Namespace) -> list[NetworkSummary]:
    return _change(host, arguments, active=False)


def _change(
    host: HostOperations, arguments: argparse.Namespace, *, active: bool
) -> list[NetworkSummary]:
    found = []
    for name in arguments.networks:
        found.append(host.describe_network(name, active=active))
        if not arguments.json:
            print(name, flush=True)
    return found


def _connect(host: HostOperations, arguments: argparse.Namespace) -> dict[str, Any]:
    number = host.machine(arguments.machine).connect(arguments.network, arguments.interface)
    if not arguments.json:
        print(f"{arguments.machine}  eth{number}: {arguments.network}")
    return {"machine": arguments.machine, "interface": number}


def _disconnect(host: HostOperations, arguments: argparse.Namespace) -> dict[str, Any]:
    host.machine(arguments.machine).disconnect(arguments.interface)
    if not arguments.json:
        print(f"{arguments.machine}  eth{arguments.interface}: none")
    return {"machine": arguments.machine, "interface": arguments.interface}
