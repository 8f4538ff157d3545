"""`ringzero exec`: a command in a running machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

from ringzero.api.action import Link, Stream
from ringzero.cli.machines import add_name, both_outputs, named
from ringzero.cli.verb import VERBS, Verb
from ringzero.errors import InvalidValueError

_STDIN, _STDOUT = 0, 1
# What the user may send to the command by sending it to us.
_FORWARDED = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2")


@VERBS.register("exec")
class Exec(Verb):
    summary = "run a command in a running machine"
    takes_command = True
    examples = """\
  ringzero exec web -- uname -a            its output, its exit status
  tar c . | ringzero exec -i web -- tar x  standard input goes to the command
  ringzero exec -it web -- sh              a shell on a terminal of its own
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags."""
        parser.usage = "ringzero exec [-i] [-t] NAME -- CMD ..."
        parser.add_argument(
            "-i", "--interactive", action="store_true", help="pass standard input on"
        )
        parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
        parser.add_argument("--json", action="store_true", help="errors as JSON")
        add_name(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Run it and end with its status."""
        if not arguments.command:
            raise InvalidValueError(
                "no command", hint=f"ringzero exec {arguments.machine} -- CMD ..."
            )
        from ringzero.host.terminal import size

        rows, columns = size(_STDOUT)
        wanted: dict[str, Any] = {"stdin": arguments.interactive}
        if arguments.tty:
            term = os.environ.get("TERM", "linux")
            wanted |= {"tty": True, "rows": rows, "columns": columns, "term": term}
        machine = named(arguments)
        with _Streams(tty=arguments.tty, interactive=arguments.interactive) as streams:
            return machine.exec(streams, arguments.command, **wanted)["status"]


class _Streams(Stream):
    """Our standard streams and signals, passed on to a command in the guest and back."""

    def __init__(self, *, tty: bool, interactive: bool) -> None:
        self._tty = tty
        self._interactive = interactive
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def begin(self, link: Link) -> None:
        from ringzero.host.terminal import Reader, on_resize, raw_mode, size

        def resized() -> None:
            rows, columns = size(_STDOUT)
            link.event("resize", rows=rows, columns=columns)

        enter = self._undo.enter_context
        enter(_forwarded(lambda name: link.event("signal", name=name)))
        if self._tty and self._interactive:
            enter(raw_mode(_STDIN))
            enter(on_resize(resized))
        if self._interactive:
            enter(Reader(_STDIN, link.send, lambda: link.send(b"")))

    def data(self, number: int, content: bytes) -> None:
        both_outputs(number, content)


@contextlib.contextmanager
def _forwarded(send: Callable[[str], None]) -> Iterator[None]:
    """Send signals that come to us on, for the block."""

    def forward(number: int, _: FrameType | None) -> None:
        send(signal.Signals(number).name.removeprefix("SIG"))

    before: dict[int, Any] = {}
    for name in _FORWARDED:
        number = signal.Signals[f"SIG{name}"]
        before[number] = signal.signal(number, forward)
    try:
        yield
    finally:
        for changed, handler in before.items():
            signal.signal(changed, handler)
