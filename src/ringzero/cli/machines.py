"""What the verbs about named machines share: arguments, tables, attached terminals."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringzero.cli.output import write
from ringzero.cli.text import printable

if TYPE_CHECKING:
    from ringzero.control.host.operations import GuestOperations

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def add_name(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add the machine's name, or several; completion knows this argument by its name."""
    if several:
        parser.add_argument("machine", nargs="+", metavar="NAME", help="a machine's name")
    else:
        parser.add_argument("machine", metavar="NAME", help="the machine's name")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="for programs")


def named(arguments: argparse.Namespace) -> GuestOperations:
    """Return the machine that the user named. Raises NotFoundError."""
    from ringzero.cli.target import machine

    return machine(arguments.machine)


def ago(since: float | None) -> str:
    """Return how long ago a time is, for people: "3m", "2d"."""
    if not since:
        return "-"
    seconds = max(0, int(time.time() - since))
    size, unit = next((pair for pair in _UNITS if seconds >= pair[0]), (1, "s"))
    return f"{seconds // size}{unit}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns as wide as they need."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print(text.rstrip())


def one_line(text: str, width: int = 60) -> str:
    """Return the first line of `text`, printable, cut for a table."""
    line = next(iter(printable(text).splitlines()), "")
    return line if len(line) <= width else line[: width - 3] + "..."


def both_outputs(number: int, data: bytes) -> None:
    """Write what came on stream 1 or 2 to the descriptor of that number."""
    write(2 if number == 2 else 1, data)


def note(text: str) -> None:
    """Tell the user something that is no output."""
    print(f"ringzero: {text}", file=sys.stderr)
