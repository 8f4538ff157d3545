"""What a verb of the command line is, and where verbs are found.

A verb is one module in `ringzero.cli.verbs`, named like the verb:

    @VERBS.register("info")
    class Info(Verb):
        summary = "say what this host can run"

        def execute(self, arguments: argparse.Namespace) -> int: ...

Its module imports nothing heavy; that is done inside `execute`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from ringzero.records import record
from ringzero.registry import Registry

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from ringzero.remote.client import Client


@record
class Away:
    """What becomes of a command with --host, which means another host than the caller's.

    `how` is AS_IS (its words name things of that host), STREAMS (and it has the caller's streams
    and terminal), CARRIED (what is the caller's is carried), HERE (it is about the caller's side,
    and done there) or REFUSED (`why` says what to do instead). `files` are its arguments that name
    files: SENT, FETCHED, THERE (that host's by their nature, and so absolute), BARRED (one would be
    taken from the wrong host); ENV are variables without a value, which are the caller's. One that
    is done by `actions` alone can be done over the HTTP API, too.
    """

    how: str
    actions: bool = False
    files: Mapping[str, str] = MappingProxyType({})
    why: str = ""


AS_IS, STREAMS, CARRIED, HERE, REFUSED = "as it is", "streams", "carried", "here", "refused"
SENT, FETCHED, THERE, BARRED, ENV = "sent", "fetched", "there", "barred", "env"


class Verb(ABC):
    """One command. `summary` is a line in the list; `examples` are shown in its help.

    `away` tells what becomes of it on another host; a command of a group has its group's where it
    has none. With `takes_command`, the words after "--" come as `arguments.command`. A verb that
    `collects` takes what is wrong with its flags in `arguments.faults`, and tells it with what
    else is.
    """

    summary: ClassVar[str]
    examples: ClassVar[str] = ""
    takes_command: ClassVar[bool] = False
    collects: ClassVar[bool] = False
    away: ClassVar[Away | None] = None

    @abstractmethod
    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the verb's own arguments to `parser`."""

    def split(self, words: list[str]) -> tuple[list[str], list[str] | None]:
        """Return the verb's own words, and those of a command for a guest, which are not ours."""
        if "--" not in words:
            return words, None
        cut = words.index("--")
        return words[:cut], words[cut + 1 :]

    def files(self, arguments: argparse.Namespace) -> Mapping[str, str]:
        """Return which arguments name files, as `away` has it, in this very command line."""
        return self.away.files if self.away is not None else {}

    @abstractmethod
    def execute(self, arguments: argparse.Namespace) -> int:
        """Do it; return the exit code. Raises RingzeroError."""

    def execute_there(self, client: Client, arguments: argparse.Namespace) -> int:
        """Do it by the actions of another host, as `ringzero.cli.target` has it now."""
        return self.execute(arguments)


class Group(Verb):
    """A verb with commands of its own, in the registry that `commands` returns."""

    # The only command to be configured: what the others read costs a start more than they do.
    named: str | None = None

    @abstractmethod
    def commands(self) -> Registry[type[Verb]]:
        """Return the commands."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the commands, each with its own arguments."""
        commands = self.commands()
        adder = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)
        for name in [self.named] if self.named is not None else commands.names():
            command = commands.get(name)()
            sub = adder.add_parser(
                name,
                help=command.summary,
                description=command.summary[0].upper() + command.summary[1:] + ".",
                epilog=command.examples and f"examples:\n{command.examples}",
            )
            command.configure(sub)
            sub.set_defaults(chosen_command=command)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Run the command."""
        return int(arguments.chosen_command.execute(arguments))


VERBS: Registry[type[Verb]] = Registry("command", "ringzero.cli.verbs")


def print_json(value: Any) -> None:
    """Print `value` as JSON for programs."""
    import json

    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")
