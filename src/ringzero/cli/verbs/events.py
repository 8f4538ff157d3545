"""`ringzero events`: what happens to machines, as it happens."""

from __future__ import annotations

import argparse
import json
import time

from ringzero.api.action import Stream
from ringzero.cli.machines import add_json
from ringzero.cli.output import write
from ringzero.cli.text import printable
from ringzero.cli.verb import AS_IS, VERBS, Away, Verb

_STDOUT = 1


@VERBS.register("events")
class Events(Verb):
    summary = "tell what happens to machines, until Ctrl-C"
    away = Away(AS_IS, actions=True)
    examples = """\
  ringzero events
  ringzero events --json web db      of these two, a line of JSON each
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags and names."""
        add_json(parser)
        parser.add_argument(
            "machine", nargs="*", metavar="NAME", help="of these machines (default: of all)"
        )

    def execute(self, arguments: argparse.Namespace) -> int:
        """Print a line for each."""
        from ringzero.cli.target import host

        # Output that goes nowhere is told now, and not when something happens.
        write(_STDOUT, b"")
        host().events(_Printer(frozenset(arguments.machine), as_json=arguments.json))
        return 0


class _Printer(Stream):
    def __init__(self, names: frozenset[str], *, as_json: bool) -> None:
        self._names = names
        self._as_json = as_json

    def data(self, number: int, content: bytes) -> None:
        event = json.loads(content)
        if self._names and event["machine"] not in self._names:
            return
        if self._as_json:
            write(_STDOUT, content)
            return
        detail = event["detail"]
        ended = detail.get("exit")
        text = f"{ended['reason']}: {ended['detail']}" if ended else detail.get("from", "")
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
        first = next(iter(printable(text).splitlines()), "")
        line = f"{when}  {event['machine']}  {event['kind']}  {first}".rstrip()
        write(_STDOUT, line.encode() + b"\n")
