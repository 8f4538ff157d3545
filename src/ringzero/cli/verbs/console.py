"""`ringzero console`: attach the terminal to a running machine."""

from __future__ import annotations

import argparse
import contextlib
import os

from ringzero.cli.machines import add_json, add_name, named, note, write
from ringzero.cli.verb import VERBS, Verb

_STDIN, _STDOUT = 0, 1


@VERBS.register("console")
class Console(Verb):
    summary = "attach to a machine's console; several may at once"
    examples = """\
  ringzero console web             Ctrl-] q detaches; the machine goes on
  ringzero console --watch web     see, and do not type
  ringzero console --serial web    the serial line, with the kernel's messages
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags and the name."""
        add = parser.add_argument
        add("--watch", action="store_true", help="see what is there, and do not type")
        add("--only", action="store_true", help="nobody else may type meanwhile")
        add("--serial", action="store_true", help="the serial line instead of the console")
        add("--no-scrollback", action="store_true", help="leave out what was said before")
        add_json(parser)
        add_name(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Attach until the user detaches or the machine ends."""
        from ringzero.host.terminal import EscapeFilter, Reader, on_resize, raw_mode, size

        rows, columns = size(_STDOUT)
        wanted = {
            "line": "serial" if arguments.serial else "",
            "watch": arguments.watch,
            "only": arguments.only,
            "scrollback": not arguments.no_scrollback,
            "rows": rows,
            "columns": columns,
        }
        escape = EscapeFilter()
        terminal = os.isatty(_STDIN)
        with named(arguments).session() as session, contextlib.ExitStack() as stack:

            def typed(data: bytes) -> None:
                data = escape.feed(data) if terminal else data
                if data:
                    session.send(data)
                if escape.ended:
                    session.send(b"")

            def resized() -> None:
                new_rows, new_columns = size(_STDOUT)
                session.event("resize", rows=new_rows, columns=new_columns)

            def begin() -> None:
                if terminal:
                    note("Ctrl-] q detaches, Ctrl-] Ctrl-] sends a Ctrl-]")
                stack.enter_context(raw_mode(_STDIN))
                stack.enter_context(on_resize(resized))
                # One that only watches types nothing, but for the escape key.
                if terminal or not arguments.watch:
                    stack.enter_context(Reader(_STDIN, typed, lambda: session.send(b"")))

            session.stream("console", wanted, lambda _, data: write(_STDOUT, data), begin)
        if escape.ended:
            note(f"detached from {arguments.machine}, which goes on")
        return 0
