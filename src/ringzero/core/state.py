"""The one state contract: everything with state saves it and takes it back.

A part with state has one frozen dataclass `…State`. `save()` returns it,
`restore(state)` puts it back into a part that was built with the same
configuration and host resources (memory, files, lines), which are handed to
the constructor and are never part of the state. `save` after `restore` gives
an equal state.
"""

from __future__ import annotations

import binascii
import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, get_args, get_origin, get_type_hints

from ringzero.errors import StateError

S = TypeVar("S")


class Stateful(Protocol[S]):
    """What every part with state implements."""

    def save(self) -> S:
        """Return the whole state as one frozen dataclass of plain values."""
        ...

    def restore(self, state: S) -> None:
        """Put `state` back; raises StateError when it does not fit this part."""
        ...


def to_tree(state: Any) -> Any:
    """Turn a state dataclass into JSON-ready values (bytes become base64 text)."""
    kind: Any = type(state)
    if kind in _PLAIN:
        return state
    if kind is tuple or kind is list:
        return [to_tree(item) for item in state]
    if kind is dict:
        return {str(key): to_tree(value) for key, value in state.items()}
    if kind is bytes:
        return binascii.b2a_base64(state, newline=False).decode()
    names = _field_names(kind)
    if names is not None:
        return {name: to_tree(getattr(state, name)) for name in names}
    if isinstance(state, (int, float, str)):
        return state
    raise StateError(f"a state may not hold a {kind.__name__}")


_PLAIN = frozenset((int, str, bool, float, type(None)))


@functools.cache
def _field_names(kind: Any) -> tuple[str, ...] | None:
    """Return the names of a dataclass's fields; None for anything else."""
    import dataclasses

    if not dataclasses.is_dataclass(kind):
        return None
    return tuple(field.name for field in dataclasses.fields(kind))


def from_tree(kind: Any, tree: Any, where: str = "state") -> Any:
    """Rebuild a value of type `kind` from what `to_tree` made of it.

    Every fault in `tree` (missing or unknown field, wrong type) raises
    StateError that names the field, because saved state is untrusted input.
    """
    try:
        return _reader(kind)(tree)
    except _MisfitError as fault:
        raise StateError(f"{where}{fault.place}: {fault.reason}") from fault


class _MisfitError(Exception):
    """What does not fit, and where: the place grows on the way out."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.place = ""

    def inside(self, place: str) -> None:
        """Say what the misfit is part of."""
        self.place = place + self.place


@functools.cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """Return what turns a tree into a value of type `kind`; made once for each type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and _field_names(kind) is not None:
        return _record_reader(kind)
    if kind is bytes:
        return _read_bytes
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


def _misfit(kind: Any, tree: Any) -> _MisfitError:
    return _MisfitError(f"expected {kind}, found {type(tree).__name__}")


def _record_reader(kind: Any) -> Callable[[Any], Any]:
    hints = get_type_hints(kind)
    readers = {name: _reader(hints[name]) for name in _field_names(kind) or ()}

    def read(tree: Any) -> Any:
        if not isinstance(tree, dict):
            raise _MisfitError(f"expected fields of {kind.__name__}")
        if tree.keys() != readers.keys():
            odd = ", ".join(sorted(map(str, set(tree) ^ set(readers))))
            raise _MisfitError(f"missing or unknown fields: {odd}")
        values = {}
        for name, reader in readers.items():
            try:
                values[name] = reader(tree[name])
            except _MisfitError as fault:
                fault.inside(f".{name}")
                raise
        return kind(**values)

    return read


def _read_bytes(tree: Any) -> bytes:
    if not isinstance(tree, str):
        raise _misfit(bytes, tree)
    try:
        return binascii.a2b_base64(tree, strict_mode=True)
    except ValueError as fault:
        raise _MisfitError("not base64") from fault


def _read_items(tree: Any, item: Callable[[Any], Any], kind: Any) -> list[Any]:
    if not isinstance(tree, list):
        raise _misfit(kind, tree)
    values: list[Any] = []
    try:
        for value in tree:
            values.append(item(value))
    except _MisfitError as fault:
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
        except _MisfitError as fault:
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
                raise _MisfitError(f"{name!r} is no {key.__name__}") from fault
            except _MisfitError as fault:
                fault.inside(f"[{name}]")
                raise
        return values

    return read
