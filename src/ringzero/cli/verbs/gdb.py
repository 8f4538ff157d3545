"""`ringzero gdb`: gdb on a machine that runs."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING

from ringzero.api.action import Link, Stream
from ringzero.cli.machines import add_name, named
from ringzero.cli.output import write
from ringzero.cli.verb import STREAMS, VERBS, Away, Verb
from ringzero.errors import InvalidValueError, NotFoundError

if TYPE_CHECKING:
    from ringzero.remote.client import Client

_STDIN, _STDOUT = 0, 1


@VERBS.register("gdb")
class Gdb(Verb):
    summary = "debug a machine's kernel and programs with gdb, while it runs"
    away = Away(STREAMS, actions=True)
    takes_command = True
    examples = """\
  ringzero gdb web                                  gdb, with the machine stopped
  ringzero gdb web -- vmlinux -ex bt                words for gdb: symbols, commands
  (gdb) target remote | ringzero gdb web            from a gdb that runs already
  ringzero run --gdb 1234 --kernel bzImage          before the first instruction

The vCPUs are gdb's threads. `detach` and `quit` let the machine go on.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the name."""
        parser.usage = "ringzero gdb MACHINE [-- WORDS OF GDB ...]"
        add_name(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Run gdb on a terminal; without one, be what gdb's `target remote |` runs."""
        if os.isatty(_STDIN) or arguments.command:
            return _run_gdb(arguments.machine, arguments.command or [])
        named(arguments).gdb(_Wire())
        return 0

    def execute_there(self, client: Client, arguments: argparse.Namespace) -> int:
        """Be gdb's wire to the other host; gdb itself would ask this host for the machine."""
        if os.isatty(_STDIN) or arguments.command:
            raise InvalidValueError(
                "over the HTTP API, gdb is begun by itself",
                hint=f"in gdb: target remote | ringzero --host ... gdb {arguments.machine}",
            )
        return self.execute(arguments)


def _run_gdb(machine: str, words: list[str]) -> int:
    program = shutil.which("gdb")
    if program is None:
        raise NotFoundError(
            "gdb is not installed",
            hint=f"apt install gdb; or in another one: target remote | ringzero gdb {machine}",
        )
    # Whatever RINGZERO_HOST says: the machine is this host's.
    ours = shlex.join([sys.executable, "-m", "ringzero", "--host", "local", "gdb", machine])
    os.execv(program, [program, "-ex", f"target remote | {ours}", *words])


class _Wire(Stream):
    """Standard input and output as gdb's wire."""

    def begin(self, link: Link) -> None:
        from ringzero.host.terminal import Reader

        self._reader = Reader(_STDIN, link.send, lambda: link.send(b""), broken=link.close)
        self._reader.__enter__()

    def data(self, number: int, content: bytes) -> None:
        write(_STDOUT, content)
