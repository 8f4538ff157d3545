"""What the bodies of the API's requests may hold, and how they are read.

A kind is a function that returns a value as it is kept, and raises BodyError with the sentence
by which Firecracker's clients know what is wrong.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ringzero.errors import InvalidValueError
from ringzero.records import field, record

Kind = Callable[[Any], Any]
# Six bytes in hexadecimal digits, as in "06:00:AC:10:00:02".
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
# How deep a body may be nested: as serde_json's own bound.
_DEPTH = 128


class BodyError(InvalidValueError):
    """A body that is none."""

    kind = "body"


@record
class Body:
    """A JSON object: `required` and `optional` fields by name, each with its kind.

    A field of `optional` that is null counts as absent. An `open` one has others besides, which
    are not looked at.
    """

    required: Mapping[str, Kind] = field(default_factory=dict)
    optional: Mapping[str, Kind] = field(default_factory=dict)
    open: bool = False

    def read(self, data: bytes) -> dict[str, Any]:
        """Return the fields that a request's body has. Raises BodyError."""
        return self(parse(data))

    def __call__(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise BodyError(f"invalid type: {_described(value)}, expected an object")
        known = {**self.required, **self.optional}
        found: dict[str, Any] = {}
        for name, item in value.items():
            if name not in known:
                if self.open:
                    continue
                raise BodyError(f"unknown field `{name}`, {_expected(list(known))}")
            if item is None and name in self.optional:
                continue
            found[name] = known[name](item)
        for name in self.required:
            if name not in found:
                raise BodyError(f"missing field `{name}`")
        return found


def parse(data: bytes) -> Any:
    """Return the JSON value in `data`. Raises BodyError."""
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except RecursionError:
        raise BodyError("recursion limit exceeded") from None
    except ValueError as fault:
        raise BodyError(str(fault).lower()) from None
    if _deeper(value, _DEPTH):
        raise BodyError("recursion limit exceeded")
    try:
        # Half a surrogate pair, which no path and no answer can have; 1e999, which is none either.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise BodyError("lone surrogate in a string, or number out of range") from None
    return value


def _no_constant(name: str) -> Any:
    raise BodyError(f"no JSON has {name}")


def _deeper(value: Any, depth: int) -> bool:
    """Whether a value is nested deeper than `depth`."""
    level = [value]
    for _ in range(depth):
        if not level:
            return False
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return bool(level)


# ---- kinds ----------------------------------------------------------------


def text(value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise BodyError(f"invalid type: {_described(value)}, expected a string")
    if "\0" in value:
        raise BodyError("invalid value: a string with a NUL in it")
    return value


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise BodyError(f"invalid type: {_described(value)}, expected a boolean")
    return value


def whole(bits: int) -> Kind:
    """Return the kind of a whole number, not negative, of so many bits."""

    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise BodyError(f"invalid type: {_described(value)}, expected u{bits}")
        if not 0 <= value < 1 << bits:
            raise BodyError(f"invalid value: {_described(value)}, expected u{bits}")
        return value

    return read


def one_of(*names: str) -> Kind:
    """Return the kind of a text that is one of `names`."""

    def read(value: Any) -> str:
        if text(value) not in names:
            raise BodyError(f"unknown variant `{value}`, {_expected(names)}")
        return str(value)

    return read


def each(kind: Kind) -> Kind:
    """Return the kind of a list of `kind`."""

    def read(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise BodyError(f"invalid type: {_described(value)}, expected a sequence")
        return [kind(item) for item in value]

    return read


def texts(value: Any) -> dict[str, str]:
    """An object of texts."""
    if not isinstance(value, dict):
        raise BodyError(f"invalid type: {_described(value)}, expected a map")
    return {name: text(item) for name, item in value.items()}


def anything(value: Any) -> Any:
    """Any JSON."""
    return value


def mac(value: Any) -> str:
    """A MAC address."""
    if not _MAC.fullmatch(text(value)):
        raise BodyError(f"invalid value: the MAC address {value!r} has another form")
    return str(value).lower()


def ipv4(value: Any) -> str:
    """An IPv4 address."""
    try:
        return str(ipaddress.IPv4Address(text(value)))
    except ValueError:
        raise BodyError(f"invalid value: {value!r} is no IPv4 address") from None


def level(value: Any) -> str:
    """A level of the log, in lower case."""
    name = {"warning": "warn"}.get(text(value).lower(), value.lower())
    if name not in ("off", "trace", "debug", "info", "warn", "error"):
        raise BodyError("Invalid LevelFilter")
    return str(name)


def _described(value: Any) -> str:
    """Return what a value is, as serde's errors have it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{value}`" if -(1 << 64) < value < 1 << 64 else "a number out of range"
    if isinstance(value, float):
        return f"floating point `{value}`"
    if isinstance(value, str):
        return f"string {json.dumps(value[:64], ensure_ascii=False)}"
    return "sequence" if isinstance(value, list) else "map"


def _expected(names: list[str] | tuple[str, ...]) -> str:
    if not names:
        return "there are no fields"
    quoted = [f"`{name}`" for name in names]
    if len(names) == 1:
        return f"expected {quoted[0]}"
    return (
        f"expected one of {', '.join(quoted)}"
        if len(names) > 2
        else f"expected {' or '.join(quoted)}"
    )
