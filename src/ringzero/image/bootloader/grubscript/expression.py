"""Expressions of GRUB's `test` and `[` (GRUB manual, "test")."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence


class Test:
    """An expression of `test`: files, numbers, texts, with !, -a and -o."""

    def __init__(self, words: Sequence[str], is_file: Callable[[str, str], bool]) -> None:
        self._words = words
        self._at = 0
        self._is_file = is_file

    def result(self) -> bool:
        """Return what the expression is; an empty one, and one of no valid form, is false."""
        if not self._words:
            return False
        found = self._all()
        while self._next() == "-o":
            self._at += 1
            found = self._all() or found
        return found

    def _next(self) -> str:
        return self._words[self._at] if self._at < len(self._words) else ""

    def _all(self) -> bool:
        found = self._one()
        while self._next() == "-a":
            self._at += 1
            found = self._one() and found
        return found

    def _one(self) -> bool:
        negated = False
        while self._next() == "!" and self._at + 1 < len(self._words):
            negated = not negated
            self._at += 1
        return self._primary() is not negated

    def _primary(self) -> bool:
        word, operator, other = [*self._words[self._at :], "", "", ""][:3]
        left = len(self._words) - self._at
        if left >= 3 and operator in _COMPARISONS:
            self._at += 3
            return _COMPARISONS[operator](word, other)
        if left >= 2 and word in ("-n", "-z"):
            self._at += 2
            return bool(operator) is (word == "-n")
        if left >= 2 and word in ("-d", "-e", "-f", "-s"):
            self._at += 2
            return self._is_file(word, operator)
        self._at += 1
        return bool(word)


def _number(text: str) -> int:
    found = re.match(r"[+-]?\d{1,18}", text)
    return int(found.group()) if found else 0


_COMPARISONS: dict[str, Callable[[str, str], bool]] = {
    "=": lambda a, b: a == b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
    "-eq": lambda a, b: _number(a) == _number(b),
    "-ne": lambda a, b: _number(a) != _number(b),
    "-lt": lambda a, b: _number(a) < _number(b),
    "-le": lambda a, b: _number(a) <= _number(b),
    "-gt": lambda a, b: _number(a) > _number(b),
    "-ge": lambda a, b: _number(a) >= _number(b),
}
