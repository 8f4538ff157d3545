"""`ringzero logs`: what a machine said."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from ringzero.api.action import Stream
from ringzero.cli.machines import add_json, add_name, named
from ringzero.cli.output import write
from ringzero.cli.text import TerminalFilter
from ringzero.cli.verb import AS_IS, VERBS, Away, Verb, print_json
from ringzero.errors import InvalidValueError

_STDOUT = 1


@VERBS.register("logs")
class Logs(Verb):
    summary = "print what a machine said: serial line, console, its command's output"
    away = Away(AS_IS, actions=True)
    examples = """\
  ringzero logs web
  ringzero logs -f web          and what it says from now on, until it ends
  ringzero logs -n 20 web       the last lines
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags and the name."""
        add = parser.add_argument
        add("-f", "--follow", action="store_true", help="go on until the machine ends")
        add("-n", "--lines", metavar="N", type=int, help="begin N lines before the end")
        add("--raw", action="store_true", help="on a terminal, too, byte for byte")
        add("--vmm", action="store_true", help="the log of the machine's process instead")
        add_json(parser)
        add_name(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Print the log, byte for byte where no terminal shows it."""
        if arguments.lines is not None and arguments.lines < 0:
            raise InvalidValueError(f"{arguments.lines} lines make no sense")
        if arguments.json and arguments.follow:
            raise InvalidValueError("--json with -f")
        # A guest must not have the user's terminal type into the user's shell.
        filtered = TerminalFilter() if os.isatty(_STDOUT) and not arguments.raw else None
        kept, machine = bytearray(), named(arguments)

        def show(chunk: bytes) -> None:
            if arguments.json:
                kept.extend(chunk)
            else:
                write(_STDOUT, chunk if filtered is None else filtered.feed(chunk))

        # Output that goes nowhere is told now, and not when something was said.
        show(b"")
        machine.logs(
            _Shown(show), follow=arguments.follow, lines=arguments.lines, vmm=arguments.vmm
        )
        if arguments.json:
            print_json({"name": machine.name, "log": kept.decode("utf-8", "replace")})
        elif filtered is not None:
            write(_STDOUT, filtered.end())
        return 0


class _Shown(Stream):
    def __init__(self, show: Callable[[bytes], None]) -> None:
        self._show = show

    def data(self, number: int, content: bytes) -> None:
        self._show(content)
