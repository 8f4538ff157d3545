"""Words of a logical line, quotes, and variables (Dockerfile reference, "Environment replacement").

A word keeps its quotes and variables until a step uses it: what a variable holds is known then.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable

from ringzero.build.vmfile.faults import FaultError
from ringzero.records import record

# Returns what a variable holds, or None where there is none.
Lookup = Callable[[str], str | None]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]")
_OPERATORS = (":-", ":+", ":?", "-", "+", "?", "##", "#", "%%", "%", "//", "/")


@record
class Word:
    """A word as it is written, and where in its line it begins."""

    text: str
    at: int


def split(text: str, escape: str, at: int = 0) -> list[Word]:
    """Split `text` from `at` on at white space outside quotes and `${...}`.

    Raises FaultError for a quote or brace that is not closed.
    """
    words: list[Word] = []
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        words.append(word_at(text, at, escape))
        at += len(words[-1].text)
    return words


def word_at(text: str, at: int, escape: str) -> Word:
    """Return the word that begins at `at`. Raises FaultError as `split`."""
    return Word(text[at : _end_of_word(text, at, escape)], at)


def _end_of_word(text: str, at: int, escape: str) -> int:
    while at < len(text) and not text[at].isspace():
        if text[at] == escape:
            at += 2
        elif text[at] in "\"'":
            at = _end_of_quote(text, at, escape)
        elif text.startswith("${", at):
            at = _end_of_braces(text, at, escape)
        else:
            at += 1
    return min(at, len(text))


def _end_of_quote(text: str, at: int, escape: str) -> int:
    quote, start = text[at], at
    at += 1
    while at < len(text):
        if text[at] == quote:
            return at + 1
        at += 2 if text[at] == escape and quote == '"' else 1
    raise FaultError(start, 1, f"the quote {quote} is never closed")


def _end_of_braces(text: str, at: int, escape: str) -> int:
    start = at
    at += 2
    while at < len(text):
        if text[at] == "}":
            return at + 1
        if text[at] == escape:
            at += 2
        elif text[at] in "\"'":
            at = _end_of_quote(text, at, escape)
        elif text.startswith("${", at):
            at = _end_of_braces(text, at, escape)
        else:
            at += 1
    raise FaultError(start, 2, "the brace of ${ is never closed")


def expand(word: Word, lookup: Lookup, escape: str) -> str:
    """Return a word without its quotes, with its variables replaced.

    Raises FaultError for what `${name:?text}` demands, and for variables that are not written
    as they should be.
    """
    return _Expander(word, lookup, escape).run()


def variables(word: Word, escape: str) -> set[str]:
    """Return the names of the variables that a word may use. Raises FaultError as `expand`."""
    names: set[str] = set()

    def note(name: str) -> str:
        names.add(name)
        return "x"

    expand(word, note, escape)
    return names


class _Expander:
    def __init__(self, word: Word, lookup: Lookup, escape: str) -> None:
        self._text = word.text
        self._base = word.at
        self._lookup = lookup
        self._escape = escape
        self._at = 0

    def run(self) -> str:
        parts: list[str] = []
        quoted = False
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == "'" and not quoted:
                end = _end_of_quote(self._text, self._at, self._escape)
                parts.append(self._text[self._at + 1 : end - 1])
                self._at = end
            elif character == '"':
                quoted = not quoted
                self._at += 1
            elif character == self._escape:
                parts.append(self._quoted(quoted))
            elif character == "$":
                parts.append(self._variable())
            else:
                parts.append(character)
                self._at += 1
        return "".join(parts)

    def _quoted(self, inside: bool) -> str:
        """Return what an escape character and the next one stand for."""
        following = self._text[self._at + 1 : self._at + 2]
        self._at += 2
        if not following or (inside and following not in ('"', "$", self._escape)):
            return self._escape + following
        return following

    def _variable(self) -> str:
        start = self._at
        braces = self._text.startswith("${", start)
        match = _NAME.match(self._text, start + 1 + braces)
        if match is None:
            if braces:
                raise self._fault(start, 2, "no name of a variable behind ${")
            self._at += 1
            return "$"
        name = match[0]
        if not braces:
            self._at = match.end()
            return self._lookup(name) or ""
        end = _end_of_braces(self._text, start, self._escape)
        self._at = end
        rest = self._text[match.end() : end - 1]
        if not rest:
            return self._lookup(name) or ""
        operator = next((o for o in _OPERATORS if rest.startswith(o)), None)
        if operator is None:
            raise self._fault(
                match.end(), len(rest), f"{rest!r} behind a variable; known: {' '.join(_OPERATORS)}"
            )
        argument = rest[len(operator) :]
        return self._modified(name, operator, argument, match.end() + len(operator))

    def _modified(self, name: str, operator: str, argument: str, at: int) -> str:
        value = self._lookup(name)
        missing = value is None or (not value and operator[0] == ":")
        word = Word(argument, self._base + at)
        kind = operator[-1]
        if kind in "-+?":
            if kind == "+":
                return "" if missing else expand(word, self._lookup, self._escape)
            if not missing:
                return value or ""
            text = expand(word, self._lookup, self._escape)
            if kind == "-":
                return text
            raise self._fault(at, len(argument), f"{name}: {text or 'is not set'}")
        if kind == "/":
            pattern, put = self._halves(argument)
            count = 0 if operator == "//" else 1
            expression = re.compile(_translated(self._filled(pattern, at)))
            instead = self._filled(put, at + len(pattern) + 1)
            return expression.sub(lambda _: instead, value or "", count=count)
        return _trimmed(value or "", operator, self._filled(argument, at))

    def _halves(self, argument: str) -> tuple[str, str]:
        """Split `pattern/text` at the first slash that is not escaped."""
        at = 0
        while at < len(argument) and argument[at] != "/":
            at += 2 if argument[at] == self._escape else 1
        return argument[:at], argument[at + 1 :]

    def _filled(self, text: str, at: int) -> str:
        return expand(Word(text, self._base + at), self._lookup, self._escape)

    def _fault(self, at: int, width: int, message: str) -> FaultError:
        return FaultError(self._base + at, max(1, width), message)


def _translated(pattern: str) -> str:
    """Return a shell pattern as a regular expression, without anchors."""
    return "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern) or "(?!)"


def _trimmed(value: str, operator: str, pattern: str) -> str:
    """Take what matches from the front (#) or the back (%); doubled, as much as there is."""
    lengths = range(len(value) + 1)
    for length in reversed(lengths) if len(operator) == 2 else lengths:
        if operator[0] == "#":
            head, rest = value[:length], value[length:]
        else:
            head, rest = value[len(value) - length :], value[: len(value) - length]
        if fnmatch.fnmatchcase(head, pattern):
            return rest
    return value


def json_words(text: str) -> list[str] | None:
    """Return the strings of a JSON array, or None where `text` is none."""
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(found, list) and all(isinstance(word, str) for word in found)
    return found if whole else None
