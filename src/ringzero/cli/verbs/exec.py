"""`ringzero exec`: a command in a running machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from ringzero.api.action import Link, Stream
from ringzero.cli.command_flags import (
    add_command_flags,
    advise_quoting,
    command_words,
    given,
)
from ringzero.cli.flags import words_of
from ringzero.cli.machines import add_name, both_outputs, named, note
from ringzero.cli.signals import taken
from ringzero.cli.verb import ENV, STREAMS, VERBS, Away, Verb
from ringzero.errors import ControlError, InvalidValueError

if TYPE_CHECKING:
    from ringzero.control.host.operations import GuestOperations

_STDIN, _STDOUT = 0, 1
# What the user may send to the command by sending it to us.
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
_FORWARDED = (*_ENDING, signal.SIGUSR1, signal.SIGUSR2)
# Who sends so many signals within so many seconds, of which the last would end a program, wants
# out, whatever the command in the guest makes of them.
_ENOUGH, _SOON = 3, 3.0


@VERBS.register("exec")
class Exec(Verb):
    summary = "run a command in a running machine"
    away = Away(STREAMS, actions=True, files={"env": ENV})
    takes_command = True
    examples = """\
  ringzero exec web uname -a            its output, its exit status
  tar c . | ringzero exec -i web tar x  standard input goes to the command
  ringzero exec -it web sh              a shell on a terminal of its own
  ringzero exec -u nobody -w /tmp -e LANG=C web env

Flags stand before the command, whose own begin where it does; a -- before it may be left out.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags."""
        parser.usage = "ringzero exec [FLAGS] NAME CMD ..."
        parser.add_argument(
            "-i", "--interactive", action="store_true", help="pass standard input on"
        )
        parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
        add_command_flags(parser)
        parser.add_argument("--json", action="store_true", help="errors as JSON")
        add_name(parser)

    def split(self, words: list[str]) -> tuple[list[str], list[str] | None]:
        """The command begins behind the name, or behind "--" there."""
        own, command = super().split(words)
        _, *after = words_of(self, own) or [0]
        return (words[: after[0]], words[after[0] :]) if after else (own, command)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Run it and end with its status."""
        if not arguments.command:
            raise InvalidValueError("no command", hint=f"ringzero exec {arguments.machine} CMD ...")
        machine = named(arguments)
        words = arguments.command
        if given(arguments):
            words = command_words(arguments, words, takes_options=machine.takes_options)
        status = run_there(machine, words, tty=arguments.tty, interactive=arguments.interactive)
        advise_quoting(arguments.command, status)
        return status


def run_there(machine: GuestOperations, words: list[str], *, tty: bool, interactive: bool) -> int:
    """Run a command in a guest on our standard streams; return its exit status."""
    from ringzero.host.terminal import size

    rows, columns = size(_STDOUT)
    wanted: dict[str, Any] = {"stdin": interactive}
    if tty:
        term = os.environ.get("TERM", "linux")
        wanted |= {"tty": True, "rows": rows, "columns": columns, "term": term}
    with _Streams(tty=tty, interactive=interactive) as streams:
        try:
            end = machine.exec(streams, words, wait=machine.boot_bound(), **wanted)
        except ControlError:
            if streams.left:
                return 128 + streams.left
            raise
    return end["status"]


class _Streams(Stream):
    """Our standard streams and signals, passed on to a command in the guest and back."""

    def __init__(self, *, tty: bool, interactive: bool) -> None:
        self._tty = tty
        self._interactive = interactive
        self._undo = contextlib.ExitStack()
        # The signal by which the user left a command that did not heed it.
        self.left = 0
        # When signals came, in seconds of the monotonic clock.
        self._recent: list[float] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def begin(self, link: Link) -> None:
        from ringzero.host.terminal import Reader, raw_mode, size

        def resized() -> None:
            rows, columns = size(_STDOUT)
            link.event("resize", rows=rows, columns=columns)

        enter = self._undo.enter_context
        enter(taken(_FORWARDED, lambda number: self._signal(link, number)))
        if self._tty and self._interactive:
            enter(raw_mode(_STDIN))
            enter(taken((signal.SIGWINCH,), lambda _: resized()))
        if self._interactive:
            enter(Reader(_STDIN, link.send, lambda: link.send(b""), broken=link.close))

    def data(self, number: int, content: bytes) -> None:
        both_outputs(number, content)

    def event(self, kind: str, content: dict[str, Any]) -> None:
        if kind == "waiting":
            waited = content.get("waited", 0)
            since = f", for {waited:.0f} s now" if isinstance(waited, (int, float)) else ""
            note(f"waiting for the guest to take commands{since}; Ctrl-C ends that")

    def _signal(self, link: Link, number: int) -> None:
        """Send a signal that came to us on; the last of many ends us."""
        now = time.monotonic()
        self._recent = [*(then for then in self._recent if now - then < _SOON), now]
        if len(self._recent) >= _ENOUGH and number in _ENDING:
            self.left = number
            link.close()
            return
        # It waits behind input that nobody takes; the next signal does not wait for it.
        threading.Thread(target=_send, args=(link, number), name="signal", daemon=True).start()


def _send(link: Link, number: int) -> None:
    with contextlib.suppress(Exception):
        link.event("signal", name=signal.Signals(number).name.removeprefix("SIG"))
