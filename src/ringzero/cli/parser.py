"""argparse as the verbs want it: faults are errors of ours, told all together."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from ringzero.errors import InvalidValueError

# Of help where standard output is no terminal, in characters.
_WIDTH = 80


class Parser(argparse.ArgumentParser):
    """Collects unreadable values and unknown flags in `faults`; raises InvalidValueError."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        named.setdefault("formatter_class", formatter)
        # The beginning of a flag is not taken for it: what is new today would change it tomorrow.
        named.setdefault("allow_abbrev", False)
        super().__init__(*arguments, **named)
        self.faults: list[str] = []

    def error(self, message: str) -> NoReturn:
        """Raise InvalidValueError."""
        raise InvalidValueError(message, hint=f"`{self.prog} --help` tells what it takes")

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        try:
            value = super()._get_value(action, text)
        except argparse.ArgumentError as fault:
            self.faults.append(str(fault))
            return action.default
        choices = action.choices
        if isinstance(choices, (list, tuple)) and not action.option_strings:
            from ringzero.cli.habits import command_of

            return value if value in choices else command_of(self.prog, text, choices)
        return value


def formatter(prog: str) -> argparse.HelpFormatter:
    """Return what lays help out."""
    # Left to itself, the formatter loads much in order to find the width.
    width = os.get_terminal_size(1).columns if os.isatty(1) else _WIDTH
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=width - 2)


def parse(parser: Parser, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return what the words say, and what is wrong with them. Raises InvalidValueError."""
    words = list(words)
    lost = list(_unknown_flags(parser, words))
    try:
        arguments, unknown = parser.parse_known_args(words)
    except InvalidValueError as fault:
        if lost:
            # What else is wrong may come of it.
            raise InvalidValueError(lost[0], hint=fault.hint) from None
        raise
    faults = [fault for part in _parts(parser) for fault in part.faults]
    if unknown and not lost:
        lost = [f"unexpected words: {' '.join(unknown)}"]
    return arguments, faults + lost


def _unknown_flags(parser: argparse.ArgumentParser, words: list[str]) -> Iterator[str]:
    """Yield what is wrong with each flag that there is not; put our names of commands in place.

    Raises NotFoundError for a command of a group that there is not.
    """
    value = False
    for at, word in enumerate(words):
        if value and not word.startswith("-"):
            value = False
            continue
        value = False
        groups = [a.choices for a in parser._actions if isinstance(a.choices, dict)]
        if not word.startswith("-") or word == "-":
            # The first word of a group is a command, with flags of its own.
            for group in groups:
                if word not in group:
                    from ringzero.cli.habits import command_of

                    words[at] = command_of(parser.prog, word, group)
                parser = group[words[at]]
            continue
        known = parser._option_string_actions
        flag = word.partition("=")[0]
        if word == "--":
            return
        if not flag.startswith("--") and flag not in known:
            # Several short flags in one word, the last perhaps with its value.
            flag = next((f"-{c}" for c in flag[1:] if _takes(known.get(f"-{c}"))), f"-{flag[-1]}")
        if flag in known:
            value = word == flag and _takes(known[flag])
        elif word[1:2] == "-" or word[1:2].isalpha():
            import difflib

            names = [name.removeprefix("--") for name in known if name.startswith("--")]
            close = difflib.get_close_matches(flag.lstrip("-"), names, n=1)
            yield f"no flag {flag}" + (f"; did you mean --{close[0]}?" if close else "")


def _takes(flag: argparse.Action | None) -> bool:
    """Whether it is a flag that has a value, or none at all."""
    return flag is None or flag.nargs != 0


def _parts(parser: argparse.ArgumentParser) -> list[Parser]:
    found = [parser] if isinstance(parser, Parser) else []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part in set(action.choices.values()):
                found += _parts(part)
    return found
