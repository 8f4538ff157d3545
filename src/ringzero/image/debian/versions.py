"""Versions of Debian packages, and relations between them (deb-version(7), Debian policy 5.6.12,
7.1); no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ringzero.errors import HostError
from ringzero.records import record

_PART = re.compile(r"([^0-9]*)([0-9]*)")
_RELATION = re.compile(
    r"\s*([a-z0-9][a-z0-9+.-]*)(?::[a-z0-9-]+)?\s*(?:\(\s*(<<|<=|=|>=|>>|<|>)\s*([^\s)]+)\s*\))?"
    r"(?:\s*\[[^\]]*\])?(?:\s*<[^>]*>)*\s*"
)
_HOLDS: dict[str, Callable[[int], bool]] = {
    "<<": lambda order: order < 0,
    "<": lambda order: order <= 0,
    "<=": lambda order: order <= 0,
    "=": lambda order: order == 0,
    ">=": lambda order: order >= 0,
    ">": lambda order: order >= 0,
    ">>": lambda order: order > 0,
}


def compare(one: str, two: str) -> int:
    """Return a number below, equal to or above 0, as version `one` is to version `two`."""
    first, second = _split(one), _split(two)
    return (
        _compare_numbers(first[0], second[0])
        or _compare(first[1], second[1])
        or _compare(first[2], second[2])
    )


def _split(version: str) -> tuple[str, str, str]:
    epoch, colon, rest = version.partition(":")
    if not (colon and epoch.isascii() and epoch.isdecimal()):
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-")
    return (epoch, upstream, revision) if upstream else (epoch, rest, "")


def _compare_numbers(one: str, two: str) -> int:
    """Compare digits by value, however many there are: nobody bounds them."""
    first, second = one.lstrip("0"), two.lstrip("0")
    return len(first) - len(second) or (first > second) - (first < second)


def _order(character: str) -> int:
    if character == "~":
        return -1
    if not character:
        return 0
    return ord(character) if character.isalpha() else ord(character) + 256


def _compare(one: str, two: str) -> int:
    while one or two:
        (text, digits), one = _next(one)
        (other, numbers), two = _next(two)
        for index in range(max(len(text), len(other))):
            order = _order(text[index : index + 1]) - _order(other[index : index + 1])
            if order:
                return order
        if order := _compare_numbers(digits, numbers):
            return order
    return 0


def _next(text: str) -> tuple[tuple[str, str], str]:
    match = _PART.match(text)
    assert match is not None, "it matches nothing at all, too"
    return (match[1], match[2]), text[match.end() :]


@record
class Relation:
    """A package by name, and perhaps a relation of its version to another."""

    name: str
    operator: str = ""
    version: str = ""

    def holds(self, version: str) -> bool:
        """Whether a package of `version` is what is wanted."""
        return not self.operator or _HOLDS[self.operator](compare(version, self.version))


def relations(text: str) -> list[list[Relation]]:
    """Return what a field like Depends asks for: all of these, and of each any alternative.

    Raises HostError for what is none.
    """
    found = []
    for group in text.replace("\n", " ").split(","):
        if not group.strip():
            continue
        alternatives = []
        for item in group.split("|"):
            match = _RELATION.fullmatch(item)
            if match is None:
                raise HostError(f"a Debian package depends on {item.strip()[:100]!r}")
            alternatives.append(Relation(match[1], match[2] or "", match[3] or ""))
        found.append(alternatives)
    return found
