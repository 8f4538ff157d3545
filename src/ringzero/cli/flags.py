"""The plain case of a command line, read without argparse, whose import and set-up cost a start
more than building the machine does.

A verb configures `PlainFlags` as it would an ArgumentParser. What it reads, it
reads as argparse would; anything else (help, abbreviations, faults, flags of
other kinds) it leaves to argparse by returning None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringzero.cli.verb import Verb

_KNOWN = {"metavar", "help", "default", "action", "type"}
_ACTIONS = ("store", "store_true", "append")


class _NotPlainError(Exception):
    """Something that only argparse knows how to treat."""


class PlainFlags:
    """Flags with or without a value; no positional words."""

    usage: str | None = None
    # Take words and flags of other kinds, too, whose values are then not read.
    lenient = False

    def __init__(self) -> None:
        self._flags: dict[str, tuple[str, str, Callable[[str], Any]]] = {}
        self._values: dict[str, Any] = {}

    def add_argument(self, *names: str, **options: Any) -> None:
        """As argparse's; raises _NotPlainError for what is not plain."""
        action = options.get("action", "store")
        if (
            set(options) - _KNOWN
            or action not in _ACTIONS
            or not all(name.startswith("-") for name in names)
            # Such a default is converted too.
            or ("type" in options and isinstance(options.get("default"), str))
        ):
            if not self.lenient:
                raise _NotPlainError
            if not names[0].startswith("-"):
                return
        chosen = next((name for name in names if name.startswith("--")), names[0])
        destination = chosen.lstrip("-").replace("-", "_")
        for name in names:
            self._flags[name] = destination, action, options.get("type", str)
        self._values[destination] = options.get(
            "default", False if action == "store_true" else None
        )

    def __getattr__(self, name: str) -> Any:
        raise _NotPlainError

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the values by destination; raises _NotPlainError, ValueError."""
        values = dict(self._values)
        rest = list(words)
        while rest:
            name, equals, text = rest.pop(0).partition("=")
            if name not in self._flags or (equals and not name.startswith("--")):
                raise _NotPlainError
            destination, action, convert = self._flags[name]
            if action == "store_true":
                if equals:
                    raise _NotPlainError
                values[destination] = True
                continue
            if not equals:
                if not rest or rest[0].startswith("-"):
                    raise _NotPlainError
                text = rest.pop(0)
            value = convert(text)
            if action == "append":
                value = [*(values[destination] or ()), value]
            values[destination] = value
        return values

    def words(self, words: Sequence[str]) -> list[int]:
        """Return where in `words` those stand that are no flags and no values of flags."""
        found, at = [], 0
        while at < len(words):
            name, equals, _ = words[at].partition("=")
            if not name.startswith("-") or name == "-":
                found.append(at)
            # Of short flags in one word, the last may have a value.
            last = name if name.startswith("--") else f"-{name[-1:]}"
            takes = self._flags.get(last, ("", "store_true", str))[1] != "store_true"
            at += 2 if takes and not equals and at not in found else 1
        return found


def words_of(verb: Verb, words: Sequence[str]) -> list[int]:
    """Return where in a verb's `words` those stand that are neither flags nor their values."""
    flags = PlainFlags()
    flags.lenient = True
    verb.configure(flags)  # type: ignore[arg-type]
    return flags.words(words)


def parse(verb: Verb, words: Sequence[str]) -> Any:
    """Return what argparse would make of `words` for `verb`, or None: ask argparse."""
    flags: Any = PlainFlags()
    try:
        verb.configure(flags)
        return SimpleNamespace(**flags.parse(words))
    except (_NotPlainError, ValueError, TypeError):
        return None
