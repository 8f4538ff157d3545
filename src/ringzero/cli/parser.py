"""argparse as the verbs want it: faults are errors of ours, told all together."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
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
            return super()._get_value(action, text)
        except argparse.ArgumentError as fault:
            self.faults.append(str(fault))
            return action.default


def formatter(prog: str) -> argparse.HelpFormatter:
    """Return what lays help out."""
    # Left to itself, the formatter loads much in order to find the width.
    width = os.get_terminal_size(1).columns if os.isatty(1) else _WIDTH
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=width - 2)


def parse(parser: Parser, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return what the words say, and what is wrong with them. Raises InvalidValueError."""
    arguments, unknown = parser.parse_known_args(words)
    faults = [fault for part in _parts(parser) for fault in part.faults]
    if unknown:
        faults.append(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments, faults


def _parts(parser: argparse.ArgumentParser) -> list[Parser]:
    found = [parser] if isinstance(parser, Parser) else []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part in set(action.choices.values()):
                found += _parts(part)
    return found
