"""The one state contract: everything with state saves it and takes it back.

A part with state has one frozen dataclass `…State`. `save()` returns it,
`restore(state)` puts it back into a part that was built with the same
configuration and host resources (memory, files, lines), which are handed to
the constructor and are never part of the state. `save` after `restore` gives
an equal state.
"""

from __future__ import annotations

import base64
import functools
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
    import dataclasses

    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        return {f.name: to_tree(getattr(state, f.name)) for f in dataclasses.fields(state)}
    if isinstance(state, bytes):
        return base64.b64encode(state).decode()
    if isinstance(state, (list, tuple)):
        return [to_tree(item) for item in state]
    if isinstance(state, dict):
        return {str(key): to_tree(value) for key, value in state.items()}
    if state is None or isinstance(state, (bool, int, float, str)):
        return state
    raise StateError(f"a state may not hold a {type(state).__name__}")


@functools.cache
def _field_types(kind: type[Any]) -> dict[str, Any]:
    """Return the types of a dataclass's fields; finding them takes a while."""
    import dataclasses

    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def from_tree(kind: Any, tree: Any, where: str = "state") -> Any:
    """Rebuild a value of type `kind` from what `to_tree` made of it.

    Every fault in `tree` (missing or unknown field, wrong type) raises
    StateError that names the field, because saved state is untrusted input.
    """
    import dataclasses

    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(tree, dict):
            raise StateError(f"{where}: expected fields of {kind.__name__}")
        hints = _field_types(kind)
        if tree.keys() != hints.keys():
            odd = ", ".join(sorted(set(tree) ^ set(hints)))
            raise StateError(f"{where}: missing or unknown fields: {odd}")
        return kind(**{n: from_tree(hint, tree[n], f"{where}.{n}") for n, hint in hints.items()})
    if kind is bytes and isinstance(tree, str):
        try:
            return base64.b64decode(tree, validate=True)
        except ValueError as fault:
            raise StateError(f"{where}: not base64") from fault
    if origin is tuple and isinstance(tree, list):
        if len(arguments) == 2 and arguments[1] is ...:
            return tuple(from_tree(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(tree))
        if len(arguments) == len(tree):
            pairs = enumerate(zip(arguments, tree, strict=True))
            return tuple(from_tree(a, v, f"{where}[{i}]") for i, (a, v) in pairs)
    if origin is list and isinstance(tree, list):
        return [from_tree(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(tree)]
    if origin is dict and isinstance(tree, dict):
        key, value = arguments
        return {key(k): from_tree(value, v, f"{where}[{k}]") for k, v in tree.items()}
    if type(None) in arguments:
        rest = [a for a in arguments if a is not type(None)]
        return None if tree is None else from_tree(rest[0], tree, where)
    if kind in (bool, int, float, str) and type(tree) is kind:
        return tree
    raise StateError(f"{where}: expected {kind}, found {type(tree).__name__}")
