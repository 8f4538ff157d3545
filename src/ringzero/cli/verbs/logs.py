"""`ringzero logs`: what a machine said."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ringzero.cli.machines import add_json, add_name, named, write
from ringzero.cli.verb import VERBS, Verb, print_json
from ringzero.errors import InvalidValueError

_STDOUT = 1
_CHUNK = 1 << 16
# How often a followed log is looked at, in seconds: a person sees no delay.
_PAUSE = 0.05


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
        add("--vmm", action="store_true", help="the log of the machine's process instead")
        add_json(parser)
        add_name(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Print the log, byte for byte."""
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
        write(_STDOUT, data)
        while arguments.follow:
            alive = where.alive
            for chunk in log.read():
                write(_STDOUT, chunk)
            if not alive:
                break
            time.sleep(_PAUSE)
        return 0


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
            self._old.append(os.open(part, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return False
        return True
