"""`ringzero port`: ports of the host that lead to a machine."""

from __future__ import annotations

import argparse

from ringzero.api.values import PortSummary
from ringzero.cli.machines import add_json, add_name, named
from ringzero.cli.verb import AS_IS, VERBS, Away, Verb, print_json
from ringzero.errors import InvalidValueError

_CHANGES = ("add", "rm")


@VERBS.register("port")
class Port(Verb):
    summary = "list, add or remove the ports of this host that lead to a machine"
    away = Away(AS_IS, actions=True)
    examples = """\
  ringzero port web                     127.0.0.1:8080 -> 80/tcp
  ringzero port web add 8081:81 0:22    while it runs; 0 takes any free port
  ringzero port web add 0.0.0.0:53:53/udp
  ringzero port web rm 8081
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the machine, and what is to be changed."""
        add_json(parser)
        add_name(parser)
        parser.add_argument("change", nargs="?", choices=_CHANGES, help="add or rm")
        parser.add_argument(
            "ports",
            nargs="*",
            metavar="[ADDR:]HOST:GUEST[/udp]",
            help="ports or ranges; to remove one, the host's port is enough",
        )

    def execute(self, arguments: argparse.Namespace) -> int:
        """List them, or change them and list what was changed."""
        machine = named(arguments)
        if (arguments.change is not None) != bool(arguments.ports):
            raise InvalidValueError(
                "which ports?", hint=f"ringzero port {arguments.machine} add 8080:80"
            )
        found: list[PortSummary] = []
        if arguments.change is None:
            found = machine.ports()
        for text in arguments.ports:
            change = machine.publish if arguments.change == "add" else machine.unpublish
            found += change(text)
        if arguments.json:
            print_json(found)
            return 0
        for port in found:
            print(_line(port))
        return 0


def _line(port: PortSummary) -> str:
    address, protocol = port["address"], port["protocol"]
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port['port'] or 'any'} -> {port['guest_port']}/{protocol}"
