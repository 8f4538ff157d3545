"""`ringzero console`: attach the terminal to a running machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from typing import Any, Self

from ringzero.api.action import Link, Stream
from ringzero.api.table import get
from ringzero.cli.action_verb import add_flags
from ringzero.cli.machines import add_json, add_name, named, note
from ringzero.cli.output import write
from ringzero.cli.signals import taken
from ringzero.cli.text import TerminalFilter
from ringzero.cli.verb import STREAMS, VERBS, Away, Verb

_STDIN, _STDOUT = 0, 1
# The arguments of the action that are flags as they are.
_FLAGS = ("watch", "only", "scrollback")


@VERBS.register("console")
class Console(Verb):
    summary = "attach to a machine's console; several may at once"
    away = Away(STREAMS, actions=True)
    examples = """\
  ringzero console web             Ctrl-] q detaches; the machine goes on
  ringzero console --watch web     see, and do not type
  ringzero console --serial web    the serial line, with the kernel's messages
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags and the name."""
        wanted = [a for a in get("console").arguments if a.name in _FLAGS]
        add_flags(parser, wanted)
        parser.add_argument(
            "--serial", action="store_true", help="the serial line instead of the console"
        )
        add_json(parser)
        add_name(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Attach until the user detaches or the machine ends."""
        from ringzero.host.terminal import size

        rows, columns = size(_STDOUT)
        machine, terminal = named(arguments), _Terminal(types=not arguments.watch)
        # Output that goes nowhere is told now, and not when the guest says something.
        write(_STDOUT, b"")
        with terminal:
            machine.console(
                terminal,
                line="serial" if arguments.serial else "",
                rows=rows,
                columns=columns,
                **{name: getattr(arguments, name) for name in _FLAGS},
            )
        if terminal.escape.ended:
            note(f"detached from {arguments.machine}, which goes on")
        return 0


class _Terminal(Stream):
    """The user's terminal, attached to a line until the escape key or the end of input."""

    def __init__(self, *, types: bool) -> None:
        from ringzero.host.terminal import EscapeFilter

        self.escape = EscapeFilter()
        self._types = types
        self._terminal = os.isatty(_STDIN)
        # For what was said before: an answer to a question of then would be typed now.
        self._filter = TerminalFilter() if os.isatty(_STDOUT) else None
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def begin(self, link: Link) -> None:
        from ringzero.host.terminal import Reader, raw_mode, size

        def typed(data: bytes) -> None:
            data = self.escape.feed(data) if self._terminal else data
            if data:
                link.send(data)
            if self.escape.ended:
                link.send(b"")

        def resized() -> None:
            rows, columns = size(_STDOUT)
            link.event("resize", rows=rows, columns=columns)

        if self._terminal:
            note("Ctrl-] q detaches, Ctrl-] Ctrl-] sends a Ctrl-]")
        self._undo.enter_context(raw_mode(_STDIN))
        self._undo.enter_context(taken((signal.SIGWINCH,), lambda _: resized()))
        # One that only watches types nothing, but for the escape key.
        if self._terminal or self._types:
            self._undo.enter_context(
                Reader(_STDIN, typed, lambda: link.send(b""), broken=link.close)
            )

    def data(self, number: int, content: bytes) -> None:
        write(_STDOUT, content if self._filter is None else self._filter.feed(content))

    def event(self, kind: str, content: dict[str, Any]) -> None:
        if kind == "live" and self._filter is not None:
            write(_STDOUT, self._filter.end())
            self._filter = None
