"""Records as plain data and back: what a JSON file holds, read by the types of the fields.

`to_plain` takes records and dataclasses of records, tuples, lists, dictionaries,
numbers, text, None, bytes (base64 text) and paths (text). `from_plain` reads the
same by the annotations of a type, and takes nothing on trust.

What was written by an older version stays readable. A field with a default may
be missing. A type may have a class method `upgrade(old: dict) -> dict`: it is
called with fields that are not today's, and returns them as today's. It may let
KeyError, TypeError, ValueError or AttributeError escape where `old` is none of
its older forms. A field that is then unknown is refused by its name.

Of a class with several kinds (`kinds`, a registry of them; each has its name in `kind`) a value
is written with its kind, by which it is read.
"""

from __future__ import annotations

import binascii
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

from ringzero.errors import NotFoundError
from ringzero.records import field_names, is_record, optional_fields

_PLAIN = frozenset((int, str, bool, float, type(None)))
# Most fields of most states are of these.
_SIMPLE: dict[Any, Any] = {
    text: found
    for kind in (int, str, bool, float, bytes)
    for text, found in (
        (kind.__name__, kind),
        (f"{kind.__name__} | None", kind | None),
        (f"tuple[{kind.__name__}, ...]", tuple.__class_getitem__((kind, ...))),
    )
}
# What an `upgrade` may stumble over in a tree that is none of its older forms.
_STUMBLES = (KeyError, IndexError, TypeError, ValueError, AttributeError)


class MisfitError(Exception):
    """What does not fit, and where: `place` grows on the way out."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.place = ""

    def inside(self, place: str) -> None:
        """Say what the misfit is part of."""
        self.place = place + self.place


def to_plain(value: Any) -> Any:
    """Return `value` as JSON-ready data; raises MisfitError for what has no such form."""
    kind: Any = type(value)
    if kind in _PLAIN:
        return value
    if kind is tuple or kind is list:
        return [to_plain(item) for item in value]
    if kind is dict:
        return {str(key): to_plain(item) for key, item in value.items()}
    if kind is bytes:
        return binascii.b2a_base64(value, newline=False).decode()
    names = _names(kind)
    if names is not None:
        tree = {name: to_plain(getattr(value, name)) for name in names}
        return {"kind": kind.kind, **tree} if hasattr(kind, "kinds") else tree
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (int, float, str)):
        return value
    raise MisfitError(f"no plain form of a {kind.__name__}")


@functools.cache
def _names(kind: Any) -> tuple[str, ...] | None:
    """Return the names of a record's fields; None for anything else."""
    return field_names(kind) if is_record(kind) else None


def from_plain(kind: Any, tree: Any) -> Any:
    """Return the value of type `kind` that `to_plain` made `tree` of; raises MisfitError."""
    return _reader(kind)(tree)


@functools.cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """Return what turns a tree into a value of type `kind`; made once for each type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if hasattr(kind, "kinds"):
        return _kinds_reader(kind)
    if isinstance(kind, type) and is_record(kind):
        return _record_reader(kind)
    if kind is bytes:
        return _read_bytes
    if kind is Path:
        return _read_path
    if kind is Any:
        return lambda tree: tree
    if origin is tuple and len(arguments) == 2 and arguments[1] is ...:
        item = _reader(arguments[0])
        return lambda tree: tuple(_read_items(tree, item, kind))
    if origin is tuple:
        return _tuple_reader(kind, [_reader(argument) for argument in arguments])
    if origin is list:
        item = _reader(arguments[0])
        return lambda tree: _read_items(tree, item, kind)
    if origin is dict:
        return _dict_reader(kind, arguments[0], _reader(arguments[1]))
    if type(None) in arguments:
        rest = _reader(next(a for a in arguments if a is not type(None)))
        return lambda tree: None if tree is None else rest(tree)
    plain = kind in (bool, int, float, str)

    def read(tree: Any) -> Any:
        if plain and type(tree) is kind:
            return tree
        raise _misfit(kind, tree)

    return read


def _misfit(kind: Any, tree: Any) -> MisfitError:
    return MisfitError(f"expected {kind}, found {type(tree).__name__}")


def _record_reader(kind: Any) -> Callable[[Any], Any]:
    hints = _hints(kind)
    readers = {name: _reader(hints[name]) for name in field_names(kind)}
    required = readers.keys() - optional_fields(kind)

    def read(tree: Any) -> Any:
        if not isinstance(tree, dict):
            raise MisfitError(f"expected fields of {kind.__name__}")
        if tree.keys() != readers.keys():
            tree = _as_today(kind, tree)
            _check_fields(tree, required, readers)
        values = {}
        for name, item in tree.items():
            try:
                values[name] = readers[name](item)
            except MisfitError as fault:
                fault.inside(f".{name}")
                raise
        return kind(**values)

    return read


def _hints(kind: Any) -> dict[str, Any]:
    """Return the types of a record's fields, as their annotations have them."""
    found: dict[str, Any] = {}
    names = frozenset(field_names(kind))
    for base in reversed(kind.__mro__):
        for name, text in vars(base).get("__annotations__", {}).items():
            if name not in names:
                continue
            known = _SIMPLE.get(text)
            if known is None and isinstance(text, str):
                # `typing.get_type_hints` takes ten times as long.
                known = eval(text, vars(sys.modules[base.__module__]))
            found[name] = text if known is None else known
    return found


def _kinds_reader(base: Any) -> Callable[[Any], Any]:
    readers: dict[Any, Callable[[Any], Any]] = {}

    def read(tree: Any) -> Any:
        if not isinstance(tree, dict) or not isinstance(tree.get("kind"), str):
            raise MisfitError(f"expected a kind of {base.kinds.noun}")
        fields = dict(tree)
        name = fields.pop("kind")
        try:
            kind = base.kinds.get(name)
        except NotFoundError as fault:
            raise MisfitError(f"{fault.message} ({fault.hint})") from fault
        if kind not in readers:
            readers[kind] = _record_reader(kind)
        return readers[kind](fields)

    return read


def _as_today(kind: Any, tree: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that an older version wrote as those of today."""
    upgrade = getattr(kind, "upgrade", None)
    if upgrade is None:
        return tree
    try:
        today: dict[str, Any] = upgrade(dict(tree))
    except _STUMBLES as fault:
        raise MisfitError(f"no form of {kind.__name__} that is known: {fault!r}") from fault
    return today


def _check_fields(
    tree: dict[str, Any], required: set[str], readers: dict[str, Callable[[Any], Any]]
) -> None:
    unknown, missing = tree.keys() - readers.keys(), required - tree.keys()
    found = [
        f"{word} fields: {', '.join(sorted(map(str, names)))}"
        for word, names in (("unknown", unknown), ("missing", missing))
        if names
    ]
    if found:
        raise MisfitError("; ".join(found))


def _read_bytes(tree: Any) -> bytes:
    if not isinstance(tree, str):
        raise _misfit(bytes, tree)
    try:
        return binascii.a2b_base64(tree, strict_mode=True)
    except ValueError as fault:
        raise MisfitError("not base64") from fault


def _read_path(tree: Any) -> Path:
    if not isinstance(tree, str) or not tree or "\0" in tree:
        raise MisfitError("expected a path")
    return Path(tree)


def _read_items(tree: Any, item: Callable[[Any], Any], kind: Any) -> list[Any]:
    if not isinstance(tree, list):
        raise _misfit(kind, tree)
    values: list[Any] = []
    try:
        for value in tree:
            values.append(item(value))
    except MisfitError as fault:
        fault.inside(f"[{len(values)}]")
        raise
    return values


def _tuple_reader(kind: Any, items: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def read(tree: Any) -> Any:
        if not isinstance(tree, list) or len(tree) != len(items):
            raise _misfit(kind, tree)
        values: list[Any] = []
        try:
            for value, item in zip(tree, items, strict=True):
                values.append(item(value))
        except MisfitError as fault:
            fault.inside(f"[{len(values)}]")
            raise
        return tuple(values)

    return read


def _dict_reader(kind: Any, key: type[Any], item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(tree: Any) -> Any:
        if not isinstance(tree, dict):
            raise _misfit(kind, tree)
        values = {}
        for name, value in tree.items():
            try:
                values[key(name)] = item(value)
            except ValueError as fault:
                raise MisfitError(f"{name!r} is no {key.__name__}") from fault
            except MisfitError as fault:
                fault.inside(f"[{name}]")
                raise
        return values

    return read
