"""Reads tables of a file by their types, and keeps all that is wrong, each with its line."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ringzero.errors import ConfigError, InvalidValueError, RingzeroError
from ringzero.units import parse_duration, parse_size

T = TypeVar("T")
U = TypeVar("U")
# A key of the file, from the outermost table on.
Key = tuple[str | int, ...]
# Of a day at most: what takes longer was meant in another unit.
LONGEST_TIME = 86_400.0
# A smaller number of bytes was meant in MiB.
LEAST_SIZE = 1 << 20


class Faults:
    """What is wrong with the file called `name`; `lines` has the line of a key, from 1 on."""

    def __init__(self, name: str, lines: Mapping[Key, int]) -> None:
        self._name = name
        self._lines = lines
        self.found: list[str] = []

    def add(self, key: Key, text: str) -> None:
        """Note what is wrong with the value of `key`."""
        near = next((key[:n] for n in range(len(key), 0, -1) if key[:n] in self._lines), ())
        line = self._lines.get(near)
        place = self._name if line is None else f"{self._name}:{line}"
        self.found.append(f"{place}: {_spelled(key)}: {text}" if key else f"{place}: {text}")

    def take(self, key: Key, fault: RingzeroError) -> None:
        """Note what another part has found."""
        for text in getattr(fault, "faults", None) or [fault.message]:
            self.add(key, text)

    def end(self) -> None:
        """Raise ConfigError with all of it, if there is any."""
        if self.found:
            raise ConfigError(
                list(dict.fromkeys(self.found)), hint="docs/deploy.md tells what each key means"
            )


class Table:
    """One table; what is taken from it is known, and the rest is a fault at `end`."""

    def __init__(self, values: Mapping[str, Any], key: Key, faults: Faults) -> None:
        self._values = dict(values)
        self._known: list[str] = []
        self.key = key
        self.faults = faults

    def has(self, name: str) -> bool:
        """Whether the key is there; it is known by that."""
        self._known.append(name)
        return name in self._values

    def fault(self, name: str, text: str) -> None:
        """Note what is wrong with a value."""
        self.faults.add((*self.key, name), text)

    def take(self, name: str, read: Callable[[Any], U], default: T) -> U | T:
        """Return a value as `read` makes it, or `default` where there is none or a bad one."""
        if not self.has(name):
            return default
        try:
            return read(self._values[name])
        except RingzeroError as fault:
            self.faults.take((*self.key, name), fault)
        except ValueError as fault:
            self.fault(name, str(fault))
        return default

    def text(self, name: str, default: T) -> str | T:
        """Return a text that is not empty."""
        return self.take(name, _text, default)

    def size(self, name: str) -> int | None:
        """Return a size in bytes."""
        return self.take(name, _size, None)

    def duration(self, name: str, default: float) -> float:
        """Return a time in seconds."""
        return self.take(name, _duration, default)

    def count(self, name: str, default: T, least: int, most: int) -> int | T:
        """Return a whole number."""

        def read(value: Any) -> int:
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"a whole number from {least} to {most} is wanted")
            return value

        return self.take(name, read, default)

    def choice(self, name: str, default: str, known: Sequence[str]) -> str:
        """Return one of several words."""

        def read(value: Any) -> str:
            if value not in known:
                raise ValueError(f"{value!r}: known are {', '.join(known)}{_meant(value, known)}")
            return str(value)

        return self.take(name, read, default)

    def words(self, name: str) -> tuple[str, ...] | None:
        """Return a command: a list of words, or a text that is split as shells do."""
        return self.take(name, _words, None)

    def items(self, name: str, read: Callable[[Any], T]) -> tuple[T, ...]:
        """Return what `read` makes of each item of a list; a text is a list of one."""
        if not self.has(name):
            return ()
        values = self._values[name]
        if isinstance(values, (str, int)):
            values = [values]
        if not isinstance(values, list):
            self.fault(name, "a list is wanted")
            return ()
        found = []
        for number, value in enumerate(values):
            try:
                found.append(read(value))
            except RingzeroError as fault:
                self.faults.take((*self.key, name, number), fault)
            except ValueError as fault:
                self.faults.add((*self.key, name, number), str(fault))
        return tuple(found)

    def table(self, name: str) -> Table | None:
        """Return a table in this one."""
        if not self.has(name):
            return None
        value = self._values[name]
        if not isinstance(value, dict):
            self.fault(name, "a table is wanted")
            return None
        return Table(value, (*self.key, name), self.faults)

    def names(self) -> list[str]:
        """Return the keys, which are names of the user's own."""
        self._known += self._values
        return list(self._values)

    def end(self) -> None:
        """Note the keys that there are not."""
        for name in self._values:
            if name not in self._known:
                self.fault(name, f"there is no such key{_meant(name, self._known)}")


def with_text_keys(value: Any) -> Any:
    """Return the same with keys that are text, as TOML has them and YAML need not."""
    if isinstance(value, Mapping):
        return {str(key): with_text_keys(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_text_keys(item) for item in value]
    return value


def text_of(value: Any) -> str:
    """Return a text that may be empty. Raises ValueError."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("a text is wanted")
    return value


def _text(value: Any) -> str:
    if not text_of(value):
        raise ValueError("a text is wanted that is not empty")
    return str(value)


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("a size is wanted, as 512M or 2G")
    if isinstance(value, int) and value < LEAST_SIZE:
        raise ValueError(f"{value} are bytes; was '{value}M' meant?")
    return parse_size(value)


def _duration(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("a time is wanted, as 500ms or 30s")
    found = _seconds(value) if isinstance(value, str) else float(value)
    if not 0 <= found <= LONGEST_TIME:
        raise ValueError("a time from 0s to 24h is wanted")
    return found


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except InvalidValueError as fault:
        raise ValueError(f"{fault.message}; {fault.hint}") from fault


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = shlex.split(text_of(value))
    if not isinstance(value, list) or not value:
        raise ValueError("a command is wanted: a list of words, or a text")
    return tuple(text_of(word) for word in value)


def _meant(word: Any, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(word), known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _spelled(key: Key) -> str:
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
