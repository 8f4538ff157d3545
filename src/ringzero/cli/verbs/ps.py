"""`ringzero ps`: the named machines of this user."""

from __future__ import annotations

import argparse
from pathlib import Path

from ringzero.api.values import ALIVE, MachineSummary, Status
from ringzero.cli.machines import add_json, ago, note, one_line, table
from ringzero.cli.verb import AS_IS, VERBS, Away, Verb, print_json


@VERBS.register("ps")
class Ps(Verb):
    summary = "list the machines"
    away = Away(AS_IS, actions=True)
    examples = """\
  ringzero ps                 those that run
  ringzero ps -a              those that ended, too, and how
  ringzero ps -a --json
  ringzero rm $(ringzero ps -aq --status ended)
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags."""
        parser.add_argument("-a", "--all", action="store_true", help="those that ended, too")
        parser.add_argument("-q", "--quiet", action="store_true", help="print names only")
        parser.add_argument(
            "--status",
            choices=[status.value for status in Status],
            help="only those in this state",
        )
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Print them. No process is asked: the directories tell."""
        from ringzero.cli.target import host, remote

        found = host().machines(arguments.status)
        if not arguments.status and not arguments.all:
            found = [facts for facts in found if Status(facts["status"]) in ALIVE]
        if arguments.json:
            print_json(found)
        elif arguments.quiet:
            for facts in found:
                print(facts["name"])
        else:
            table(
                ("NAME", "STATUS", "FOR", "PID", "CPUS", "MEMORY", "ENGINE", "RUNS"),
                [_row(facts) for facts in found],
            )
        if remote() is None:
            _tell_odd()
        return 0


def _tell_odd() -> None:
    """Tell what is among this host's machines and is none."""
    from ringzero.control.host.directory import odd

    for name, reason in odd():
        note(f"{name!r} is no machine ({reason}); `ringzero rm {name}` removes it")


def _row(facts: MachineSummary) -> tuple[str, ...]:
    from ringzero.units import format_size

    config = facts["config"]
    # An image's name, or that of the kernel's file.
    what = facts["image"] or Path(str(config.get("kernel") or "?")).name
    if facts["command"]:
        what += ": " + " ".join(facts["command"])
    status = facts["status"]
    if "health" in facts and status == Status.RUNNING.value:
        status += f" ({facts['health']['status']})"
    if "exit" in facts:
        ended = facts["exit"]
        why = ended["detail"] if status == "dead" else ended["reason"]
        status += f" ({ended['exit_code']}: {one_line(why, 50)})"
    return (
        facts["name"],
        status,
        ago(facts["since"]),
        str(facts["pid"] or "-"),
        str(config.get("cpus", "?")),
        format_size(config["memory"]) if isinstance(config.get("memory"), int) else "?",
        facts["engine"] or "-",
        one_line(what, 40),
    )
