"""What is wrong in a Vmfile, and where: each fault with its line and a caret below it."""

from __future__ import annotations

from difflib import get_close_matches

from ringzero.records import record

# Columns of a line that are shown beside a fault; longer lines are cut around it.
_SHOWN = 100


@record
class Fault:
    """One fault: `line` and `column` count from 1, `width` is how many characters are meant."""

    line: int
    column: int
    width: int
    message: str

    def show(self, name: str, lines: list[str]) -> str:
        """Return the fault as compilers write it, with the line of the file called `name`."""
        text = lines[self.line - 1] if self.line <= len(lines) else ""
        start = max(0, self.column - 1 - _SHOWN // 2)
        shown = text[start : start + _SHOWN].replace("\t", " ")
        before = self.column - 1 - start
        width = max(1, min(self.width, len(shown) - before))
        caret = " " * before + "^" * width
        return f"{name}:{self.line}:{self.column}: {self.message}\n    {shown}\n    {caret}"


class FaultError(Exception):
    """Something wrong at a place of a logical line; never leaves this package."""

    def __init__(self, at: int, width: int, message: str) -> None:
        super().__init__(message)
        self.at = at
        self.width = width
        self.message = message


def meant(word: str, known: list[str]) -> str:
    """Return "; did you mean ...?" where one of `known` is like `word`."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
