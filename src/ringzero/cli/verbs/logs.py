"""`ringzero logs`: what a machine said."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.cli.machines import add_json, add_name, named
from ringzero.cli.output import write
from ringzero.cli.text import TerminalFilter
from ringzero.cli.verb import VERBS, Verb, print_json
from ringzero.errors import InvalidValueError
from ringzero.host.files import open_regular

if TYPE_CHECKING:
    from ringzero.control.host.directory import MachineDirectory

_STDOUT = 1
_CHUNK = 1 << 16


@VERBS.register("logs")
class Logs(Verb):
    summary = "print what a machine said: serial line, console, its command's output"
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
        from ringzero.control.host.directory import CONSOLE_LOG, VMM_LOG

        if arguments.lines is not None and arguments.lines < 0:
            raise InvalidValueError(f"{arguments.lines} lines make no sense")
        if arguments.json and arguments.follow:
            raise InvalidValueError("--json with -f")
        where = named(arguments).directory
        path = where.path / (VMM_LOG if arguments.vmm else CONSOLE_LOG)
        log = Log(path)
        data = b"".join(log.read())
        if arguments.lines is not None:
            data = b"".join(data.splitlines(keepends=True)[-arguments.lines or len(data) + 1 :])
        if arguments.json:
            print_json({"name": where.name, "log": data.decode("utf-8", "replace")})
            return 0
        # A guest must not have the user's terminal type into the user's shell.
        filtered = TerminalFilter() if os.isatty(_STDOUT) and not arguments.raw else None

        def show(chunk: bytes) -> None:
            write(_STDOUT, chunk if filtered is None else filtered.feed(chunk))

        show(data)
        if arguments.follow:
            self._follow(where, log, show)
        if filtered is not None:
            write(_STDOUT, filtered.end())
        return 0

    def _follow(self, where: MachineDirectory, log: Log, show: Callable[[bytes], None]) -> None:
        """Show what comes until the machine has ended."""
        from ringzero.control.host.events import Changes

        with Changes(where.path) as changes:
            while True:
                alive = where.alive
                for chunk in log.read():
                    show(chunk)
                if not alive:
                    return
                changes.wait()


class Log:
    """A log that its writer may rotate at any moment."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._old: list[int] = []
        for part in (path.with_name(path.name + ".1"), path):
            self._open(part)

    def read(self) -> Iterator[bytes]:
        """Yield everything that was written since the last time."""
        while self._old:
            descriptor = self._old[0]
            while chunk := os.read(descriptor, _CHUNK):
                yield chunk
            if len(self._old) > 1:
                os.close(self._old.pop(0))
            elif not self._rotated(descriptor):
                return

    def _rotated(self, descriptor: int) -> bool:
        """Open the next part where the writer has begun one."""
        try:
            if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                return False
        except OSError:
            return False
        return self._open(self._path)

    def _open(self, part: Path) -> bool:
        try:
            self._old.append(open_regular(part))
        except OSError:
            return False
        return True
