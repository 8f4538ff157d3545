"""Choosing one of an image's internal snapshots by what a user wrote, by qemu-img's rules.

A snapshot has an id, which is a number most often, and a name, which may be another one's id.
A text of its own is, to whoever reads (`convert -l`, `snapshot -a`), an id and if there is
none a name; to whoever deletes it is a name alone. `snapshot.id=ID`, `snapshot.name=NAME`, or
both with a comma between them, say which is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, Protocol, TypeVar

from ringzero.errors import InvalidValueError, NotFoundError

_PREFIX = "snapshot."


class _Named(Protocol):
    @property
    def id(self) -> bytes: ...

    @property
    def name(self) -> bytes: ...


T = TypeVar("T", bound=_Named)


def find_to_read(snapshots: Sequence[T], which: str) -> T:
    """Return the snapshot to read; NotFoundError, InvalidValueError."""
    found = _find_said(snapshots, which)
    if found is None:
        found = _first(snapshots, _bytes(which), None) or _first(snapshots, None, _bytes(which))
    return found or _not_found(snapshots, which)


def find_to_delete(snapshots: Sequence[T], which: str) -> T:
    """Return the snapshot to delete; NotFoundError, InvalidValueError."""
    # A name may look like a choice.
    found = _first(snapshots, None, _bytes(which)) or _find_said(snapshots, which)
    return found or _not_found(snapshots, which)


def _find_said(snapshots: Sequence[T], which: str) -> T | None:
    """Return the snapshot that a text with "snapshot." in front means; None for other texts."""
    if not which.startswith(_PREFIX):
        return None
    said: dict[str, bytes] = {}
    for part in which.split(","):
        key, equals, value = part.removeprefix(_PREFIX).partition("=")
        if key not in ("id", "name") or not equals or key in said:
            raise InvalidValueError(
                f"not a choice of a snapshot: {which!r}",
                hint="write a name, or snapshot.id=ID, or snapshot.name=NAME",
            )
        said[key] = _bytes(value)
    return _first(snapshots, said.get("id"), said.get("name")) or _not_found(snapshots, which)


def _first(snapshots: Sequence[T], id: bytes | None, name: bytes | None) -> T | None:
    for one in snapshots:
        if id in (None, one.id) and name in (None, one.name):
            return one
    return None


def _not_found(snapshots: Sequence[_Named], which: str) -> NoReturn:
    wanted = _bytes(which)
    by_id = _first(snapshots, wanted, None)
    if by_id is not None:
        raise NotFoundError(
            f"no snapshot is called {which!r}",
            hint=f"the one with that id is snapshot.id={which}, called {_shown(by_id)}",
        )
    names = ", ".join(map(_shown, snapshots))
    raise NotFoundError(f"no snapshot {which!r}", hint=f"there are: {names or 'none'}")


def _bytes(text: str) -> bytes:
    # What a shell hands over need not be text.
    return text.encode("utf-8", "surrogateescape")


def _shown(snapshot: _Named) -> str:
    return snapshot.name.decode("utf-8", "replace")
