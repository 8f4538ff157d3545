"""The one state contract: everything with state saves it and takes it back.

A part with state has one frozen dataclass `…State`. `save()` returns it,
`restore(state)` puts it back into a part that was built with the same
configuration and host resources (memory, files, lines), which are handed to
the constructor and are never part of the state. `save` after `restore` gives
an equal state.

A state may grow. A new field has a default: what the part was before there was
such a field. Where fields are renamed, merged or taken away, the class has a
class method `upgrade(old: dict) -> dict` (`ringzero.plain`). tests/vm/saved
holds a snapshot of an older version, which must stay readable.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from ringzero.errors import StateError
from ringzero.plain import MisfitError, from_plain, to_plain

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
    try:
        return to_plain(state)
    except MisfitError as fault:
        raise StateError(f"not to be saved: {fault.reason}") from fault


def from_part(kind: Any, part: Any, where: str = "state") -> Any:
    """Return `part` if it is a `kind`, which is frozen, and as `from_tree` does otherwise."""
    return part if type(part) is kind else from_tree(kind, part, where)


def from_tree(kind: Any, tree: Any, where: str = "state") -> Any:
    """Rebuild a value of type `kind` from what `to_tree` made of it, or an older version did.

    Every fault in `tree` (missing or unknown field, wrong type) raises
    StateError that names the field, because saved state is untrusted input.
    """
    try:
        return from_plain(kind, tree)
    except MisfitError as fault:
        raise StateError(f"{where}{fault.place}: {fault.reason}") from fault
