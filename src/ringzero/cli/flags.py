"""The plain case of a command line, read without argparse, whose import and set-up cost a start
more than building the machine does.

A verb configures `PlainFlags` as it would an ArgumentParser. What it reads, it
reads as argparse would; anything else (help, abbreviations, faults, flags of
other kinds) it leaves to argparse by returning None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from ringzero.cli.verb import Group, Verb

_KNOWN = {"metavar", "help", "default", "action", "type", "choices"}
_WORD_KNOWN = {"metavar", "help"}
_ACTIONS = ("store", "store_true", "append")


class _NotPlainError(Exception):
    """Something that only argparse knows how to treat."""


class PlainFlags:
    """Flags with or without a value, and words without a flag."""

    usage: str | None = None
    # Take words and flags of other kinds, too, whose values are then not read.
    lenient = False

    def __init__(self) -> None:
        self._flags: dict[str, tuple[str, str, Callable[[str], Any]]] = {}
        self._choices: dict[str, Sequence[str]] = {}
        self._values: dict[str, Any] = {}
        # Of the words without a flag, those that must be there, and those that need not.
        self._needed: list[str] = []
        self._optional: list[str] = []

    def add_argument(self, *names: str, **options: Any) -> None:
        """As argparse's; raises _NotPlainError for what is not plain."""
        if not names[0].startswith("-"):
            if not self.lenient:
                self._add_word(names[0], options)
            return
        action = options.get("action", "store")
        if not self.lenient and (
            set(options) - _KNOWN
            or action not in _ACTIONS
            # Such a default is converted too.
            or ("type" in options and isinstance(options.get("default"), str))
        ):
            raise _NotPlainError
        chosen = next((name for name in names if name.startswith("--")), names[0])
        destination = chosen.lstrip("-").replace("-", "_")
        for name in names:
            self._flags[name] = destination, action, options.get("type", str)
        if "choices" in options:
            self._choices[destination] = options["choices"]
        self._values[destination] = options.get(
            "default", False if action == "store_true" else None
        )

    def _add_word(self, name: str, options: dict[str, Any]) -> None:
        optional = options.get("nargs") == "?"
        if set(options) - _WORD_KNOWN - {"nargs"} or not (optional or "nargs" not in options):
            raise _NotPlainError
        if self._optional and not optional:
            raise _NotPlainError
        (self._optional if optional else self._needed).append(name)
        self._values[name] = None

    def __getattr__(self, name: str) -> Any:
        raise _NotPlainError

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the values by destination; raises _NotPlainError, ValueError."""
        values = dict(self._values)
        rest = list(words)
        found: list[str] = []
        last_was_word = True
        while rest:
            if rest[0] and not rest[0].startswith("-"):
                if self._optional and found and not last_was_word:
                    # What argparse makes of flags between such words is its own affair.
                    raise _NotPlainError
                found.append(rest.pop(0))
                last_was_word = True
                continue
            last_was_word = False
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
            if destination in self._choices and value not in self._choices[destination]:
                raise _NotPlainError
            if action == "append":
                value = [*(values[destination] or ()), value]
            values[destination] = value
        spare = len(found) - len(self._needed)
        if not 0 <= spare <= len(self._optional):
            raise _NotPlainError
        values.update(zip([*self._needed, *self._optional], found, strict=False))
        return values

    def knows(self, word: str) -> bool:
        """Whether a word is a flag, or several short ones."""
        name = word.partition("=")[0]
        if name in self._flags or name.startswith("--"):
            return name in self._flags
        for letter in name[1:]:
            _, action, _ = self._flags.get(f"-{letter}", ("", "", str))
            if action != "store_true":
                # The rest of the word is its value.
                return bool(action)
        return True

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
    return _lenient(verb).words(words)


def unknown_flags(verb: Verb, words: Sequence[str]) -> bool:
    """Whether a flag that the verb does not know is among its `words`."""
    flags = _lenient(verb)
    taken = {"-h", "--help"}
    return any(w.startswith("-") and w not in taken and not flags.knows(w) for w in words)


def _lenient(verb: Verb) -> PlainFlags:
    flags = PlainFlags()
    flags.lenient = True
    verb.configure(flags)  # type: ignore[arg-type]
    return flags


def parse(verb: Verb, words: Sequence[str]) -> Any:
    """Return what argparse would make of `words` for `verb`, or None: ask argparse."""
    if isinstance(verb, Group):
        commands = verb.commands()
        if not words or words[0].startswith("-") or words[0] not in commands:
            return None
        command = commands.get(words[0])()
        arguments = parse(command, words[1:])
        if arguments is not None:
            arguments.action, arguments.chosen_command = words[0], command
        return arguments
    flags: Any = PlainFlags()
    try:
        verb.configure(flags)
        return SimpleNamespace(**flags.parse(words))
    except (_NotPlainError, ValueError, TypeError):
        return None
