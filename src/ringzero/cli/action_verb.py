"""Verbs that are made from the table of actions: flags, help and what they do."""

from __future__ import annotations

import types
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from ringzero.api.action import Action, Argument, Stream, to_plain
from ringzero.api.table import get
from ringzero.cli.machines import add_json, add_name
from ringzero.cli.verb import AS_IS, Away, Verb, print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

    from ringzero.control.host.operations import GuestOperations

_METAVARS = {int: "N", float: "S", str: "TEXT"}


class MachineVerb(Verb):
    """A verb that does the action called `action` with each machine that is named.

    The action's arguments are its flags; those that must be given stand behind the name.
    `short` has flags of one letter, `metavars` what a value is called, by the argument's name.
    """

    action: ClassVar[str]
    away = Away(AS_IS, actions=True)
    several: ClassVar[bool] = True
    short: ClassVar[Mapping[str, str]] = MappingProxyType({})
    metavars: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init_subclass__(cls) -> None:
        if "summary" not in vars(cls):
            cls.summary = get(cls.action).summary

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the action's flags, --json, and the names."""
        action = get(self.action)
        flags = [a for a in action.arguments if not a.required]
        add_flags(parser, flags, short=self.short, metavars=self.metavars)
        add_json(parser)
        add_name(parser, several=self.several)
        for argument in action.arguments:
            if argument.required:
                parser.add_argument(
                    argument.name,
                    metavar=self.metavars.get(argument.name, argument.name.upper()),
                    help=_help(argument, default=False),
                )

    def execute(self, arguments: argparse.Namespace) -> int:
        """Do it with one machine after the other; the first fault ends it."""
        from ringzero.cli.target import machine

        action, results = get(self.action), []
        names = arguments.machine if self.several else [arguments.machine]
        given = chosen(action, arguments)
        for name in names:
            # What is no machine, and is in the way of one, can be removed.
            found = machine(name, odd=self.action == "remove")
            result = found.perform(action, given, Stream())
            # As it is called now: `rename` has changed that.
            results.append({"name": found.name, "result": to_plain(result)})
            if not arguments.json:
                self.tell(found, result)
        if arguments.json:
            print_json(results)
        return 0

    def tell(self, machine: GuestOperations, result: Any) -> None:
        """Print what came of it, for people."""
        print(machine.name, flush=True)


def add_flags(
    parser: argparse.ArgumentParser,
    arguments: Iterable[Argument],
    *,
    short: Mapping[str, str] = MappingProxyType({}),
    metavars: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Add a flag for each argument of an action."""
    for argument in arguments:
        flag = argument.name.replace("_", "-")
        if argument.type is bool and argument.default:
            text = f"not: {_help(argument, default=False)}"
            parser.add_argument(f"--no-{flag}", action="store_false", dest=argument.name, help=text)
            continue
        names = [f"--{flag}", *(short[name] for name in short if name == argument.name)]
        if argument.type is bool:
            parser.add_argument(*names, action="store_true", help=_help(argument, default=False))
            continue
        kind = next(option for option in argument.options if option is not types.NoneType)
        parser.add_argument(
            *names,
            metavar=metavars.get(argument.name, _METAVARS.get(kind, "TEXT")),
            type=kind,
            default=argument.default,
            help=_help(argument, default=True),
        )


def chosen(action: Action, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the action's arguments that are flags or words of the command line."""
    given = vars(arguments)
    return action.check({a.name: given[a.name] for a in action.arguments if a.name in given})


def _help(argument: Argument, *, default: bool) -> str:
    text = argument.help.replace("%", "%%")
    if default and argument.default not in (None, ""):
        shown = f"{argument.default:g}" if isinstance(argument.default, float) else argument.default
        text += f" (default: {shown})"
    return text
