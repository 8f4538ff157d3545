"""Record locks of one node, kept for each owner in a guest, whichever protocol it speaks."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Hashable
from typing import Generic, TypeVar

from ringzero.share.contract import Locks, Node

Owner = TypeVar("Owner", bound=Hashable)
# The most locks' owners on one file: each is a descriptor of the host's.
MOST_OWNERS = 256


class LockTable(Generic[Owner]):
    """The locks that a guest's owners have on one node."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[Owner, Locks] = {}

    def get(
        self, node: Node, owner: Owner, kind: int, start: int, end: int
    ) -> tuple[int, int, int]:
        """Return (kind, start, end) of a lock in the way of this one, or kind F_UNLCK."""
        kept = self._held.get(owner)
        locks = node.tree.locks(node) if kept is None else kept
        try:
            return locks.get(kind, start, end)
        finally:
            if kept is None:
                locks.close()

    def set(self, node: Node, owner: Owner, kind: int, start: int, end: int) -> None:
        """Take or drop a lock; raises BlockingIOError where another is in the way."""
        locks = self._held.get(owner)
        if locks is None:
            if kind == fcntl.F_UNLCK:
                return
            if len(self._held) >= MOST_OWNERS:
                raise OSError(errno.ENOLCK, "too many owners of locks")
            locks = self._held[owner] = node.tree.locks(node)
        locks.set(kind, start, end)

    def drop(self, owner: Owner) -> None:
        """Let all locks of an owner go."""
        locks = self._held.pop(owner, None)
        if locks is not None:
            locks.close()

    def clear(self) -> None:
        """Let all locks go."""
        for locks in self._held.values():
            locks.close()
        self._held.clear()
