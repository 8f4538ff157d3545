"""`ringzero deploy`: services as a file describes them, version after version."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ringzero.cli.machines import add_json, ago, note, one_line, table
from ringzero.cli.verb import CARRIED, SENT, VERBS, Away, Verb, print_json
from ringzero.errors import ConfigError, InvalidValueError

if TYPE_CHECKING:
    from ringzero.deployment.client import Entry, Listed, Plan, Result, ServiceFacts, Status

# As `ringzero.deployment.file` and `client` have them, which are not loaded for help.
_FILE, _TIMEOUT = "run.toml", 300.0
_SIGNS = {"added": "+", "removed": "-", "replaced": "~", "adjusted": "~", "same": " "}


@VERBS.register("deploy")
class Deploy(Verb):
    summary = "bring this host to the services that run.toml describes"
    away = Away(CARRIED)
    examples = """\
  ringzero deploy                             run.toml of this folder
  ringzero deploy -f shop.toml --dry-run      what that would change
  ringzero deploy -f shop.toml --timeout 60   new machines beside the old ones; back, if not well
  ringzero deploy ls                          what is deployed
  ringzero deploy status                      machines, health, ports
  ringzero deploy history shop
  ringzero deploy rollback                    to the version before
  ringzero deploy rollback shop --to 3
  ringzero deploy rm shop
  ringzero deploy --schema >run.schema.json   for editors: what run.toml may have

A file for one service:
  image = "shop/web:1"
  ports = ["8080:80"]
  check.http = "/healthz"

docs/deploy.md tells the rest: replicas, restart policy, secrets, volumes, several services.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags, and the other commands with theirs."""
        parser.usage = "ringzero deploy [-f FILE] [FLAGS] | ls | status | history | rollback | rm"
        add = parser.add_argument
        add(
            *("-f", "--file"),
            metavar="FILE",
            default=_FILE,
            help="what is deployed: TOML, or YAML by its name (default: run.toml)",
        )
        add("--dry-run", action="store_true", help="show what would change, and do nothing")
        add("--schema", action="store_true", help="print the JSON schema of the file")
        add("--force", action="store_true", help="make all machines anew, though nothing changed")
        _add_waiting(parser)
        add_json(parser)
        parser.set_defaults(act=_deploy)
        commands = parser.add_subparsers(dest="action", metavar="COMMAND")

        def command(
            name: str, act: Callable[[argparse.Namespace], Any], text: str
        ) -> argparse.ArgumentParser:
            sub: argparse.ArgumentParser = commands.add_parser(
                name, help=text, description=f"{text[0].upper()}{text[1:]}."
            )
            sub.add_argument(
                "deployment", metavar="NAME", nargs="?", help="its name (default: the only one)"
            )
            add_json(sub)
            sub.set_defaults(act=act)
            return sub

        listing = commands.add_parser(
            "ls", help="list what is deployed", description="List what is deployed."
        )
        listing.add_argument("-q", "--quiet", action="store_true", help="names only")
        add_json(listing)
        listing.set_defaults(act=_list)
        command("status", _status, "show machines, health and ports")
        command("history", _history, "list the versions, the last one first")
        back = command("rollback", _rollback, "go back to an earlier version")
        back.add_argument(
            "--to", metavar="N", type=int, default=None, help="which (default: the one before)"
        )
        _add_waiting(back)
        remove = command("rm", _remove, "end the machines, and forget the deployment")
        remove.add_argument(
            "--volumes", action="store_true", help="and its volumes, with all in them"
        )

    def files(self, arguments: argparse.Namespace) -> Mapping[str, str]:
        """What is deployed; the other commands read no file."""
        return {"file": SENT} if arguments.action is None and not arguments.schema else {}

    def execute(self, arguments: argparse.Namespace) -> int:
        """Do it."""
        found = arguments.act(arguments)
        if arguments.json:
            print_json(found)
        return 0


def _add_waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-wait", action="store_true", help="return when it has begun; `deploy status` tells"
    )
    parser.add_argument("--wait", action="store_true", help="return when it is done (as it is)")
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=float,
        default=_TIMEOUT,
        help="go back where the new version is not well after S seconds (default: 300)",
    )


def _check(arguments: argparse.Namespace) -> None:
    faults = []
    if not 0 < arguments.timeout < 86400:
        faults.append(f"--timeout {arguments.timeout:g}: more than 0, and less than a day")
    if arguments.wait and arguments.no_wait:
        faults.append("--wait and --no-wait: one of them")
    if len(faults) == 1:
        raise InvalidValueError(faults[0], hint="`ringzero deploy --help` tells more")
    if faults:
        raise ConfigError(faults)


def _deploy(arguments: argparse.Namespace) -> Any:
    if arguments.schema:
        from ringzero.deployment.schema import schema

        made = schema()
        if not arguments.json:
            print_json(made)
        return made
    from ringzero.deployment import client
    from ringzero.host.progress import Progress

    _check(arguments)
    if arguments.dry_run:
        found = client.plan(arguments.file)
        if not arguments.json:
            _show_plan(found)
        return found
    result = client.deploy(
        arguments.file,
        force=arguments.force,
        wait=not arguments.no_wait,
        timeout=arguments.timeout,
        progress=Progress(enabled=not arguments.json),
        tell=None if arguments.json else note,
    )
    return _done(result, arguments)


def _rollback(arguments: argparse.Namespace) -> Any:
    from ringzero.deployment import client

    _check(arguments)
    result = client.rollback(
        arguments.deployment,
        arguments.to,
        wait=not arguments.no_wait,
        timeout=arguments.timeout,
        tell=None if arguments.json else note,
    )
    return _done(result, arguments)


def _done(result: Result, arguments: argparse.Namespace) -> Result:
    if not arguments.json:
        how = "is rolled out" if result["accepted"] else "serves"
        same = "" if result["changed"] else "; nothing has changed"
        print(f"{result['name']}  version {result['version']} {how}{same}")
        for name in result["started"]:
            print(f"  started again: {name}")
    return result


def _show_plan(plan: Plan) -> None:
    changed = [change for change in plan["changes"] if change["how"] != "same"]
    live = f"version {plan['live']} serves" if plan["live"] else "nothing is deployed"
    print(f"{plan['name']}: {live}" + ("" if changed else "; nothing would change"))
    for change in plan["changes"]:
        how = change["how"]
        count = "" if how == "removed" else f", {_times(change['replicas'], 'machine')}"
        stay = " (machines stay)" if how == "adjusted" else ""
        print(f"{_SIGNS[how]} {change['service']}: {how}{stay}, {change['image']}{count}")
        for field in change["fields"]:
            print(f"    {field['key']}: {field['old']} -> {field['new']}")
    for image in plan["pulled"]:
        print(f"  {image} is not here: it would be pulled")


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def _list(arguments: argparse.Namespace) -> list[Listed]:
    from ringzero.deployment import client

    found = client.deployments()
    if arguments.quiet and not arguments.json:
        for each in found:
            print(each["name"])
    elif not arguments.json:
        rows = [
            (
                each["name"],
                str(each["version"]),
                ago(each["made"]),
                " ".join(each["services"]) or "-",
                "running"
                if each["running"]
                else "its process is gone: `deploy status` restarts it",
            )
            for each in found
        ]
        table(("NAME", "VERSION", "FOR", "SERVICES", "STATE"), rows)
    return found


def _running(each: Listed) -> str:
    if not each["version"]:
        return "nothing serves"
    return "running" if each["running"] else "its process is gone: `deploy status` restarts it"


def _status(arguments: argparse.Namespace) -> Any:
    from ringzero.deployment import client, directory

    if arguments.deployment is None and len(directory.deployments()) != 1:
        # All of them, or none.
        found = [client.status(each.name) for each in directory.deployments()]
        if not arguments.json:
            for each in found:
                _show_status(each)
            if not found:
                note("nothing is deployed")
        return found
    one = client.status(arguments.deployment)
    if not arguments.json:
        _show_status(one)
    return one


def _show_status(found: Status) -> None:
    rolling = found["rolling_out"]
    more = f"; version {rolling} is rolled out" if rolling is not None else ""
    serves = f"version {found['version']}, for {ago(found['since'])}"
    print(f"{found['name']}: {serves if found['version'] else 'nothing serves'}{more}")
    rows = []
    for service in found["services"]:
        for machine in service["machines"]:
            rows.append(
                (
                    service["service"],
                    machine["machine"],
                    machine["state"],
                    ago(machine["since"]),
                    str(machine["restarts"]),
                    service["image"],
                    _ports(service) or "-",
                    one_line(machine["reason"]) or "-",
                )
            )
    if rows:
        table(("SERVICE", "MACHINE", "STATE", "FOR", "RESTARTS", "IMAGE", "PORTS", "WHY"), rows)


def _ports(service: ServiceFacts) -> str:
    return " ".join(
        f"{port['address']}:{port['port'] or 'taken'}->{port['guest_port']}"
        for port in service["ports"]
    )


def _history(arguments: argparse.Namespace) -> list[Entry]:
    from ringzero.deployment import client

    found = client.history(arguments.deployment)
    if not arguments.json:
        rows = [
            (
                str(entry["version"]),
                entry["outcome"],
                ago(entry["made"]),
                entry["origin"],
                " ".join(f"{name}={text}" for name, text in entry["images"].items()),
                one_line(entry["reason"]) or "-",
            )
            for entry in found
        ]
        table(("VERSION", "OUTCOME", "AGO", "FROM", "IMAGES", "WHY"), rows)
    return found


def _remove(arguments: argparse.Namespace) -> list[str]:
    from ringzero.deployment import client

    names = client.remove(arguments.deployment, volumes=arguments.volumes)
    if not arguments.json:
        for name in names:
            print(name)
        sys.stdout.flush()
    return names
