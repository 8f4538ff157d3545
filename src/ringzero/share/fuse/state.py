"""What a FUSE server's guest holds, as a saved machine has it."""

from __future__ import annotations

from typing import Any

from ringzero.records import record


@record
class InodeState:
    """A node that the guest knows as `id`, of the share with this number."""

    id: int
    share: int | None
    node: Any
    lookups: int


@record
class HandleState:
    """What is open as `number`: a directory, or a file with O_* flags."""

    number: int
    inode: int
    flags: int
    directory: bool


@record
class FuseState:
    """The settled protocol, and everything that the guest holds."""

    flags: int = 0
    minor: int = 0
    next_id: int = 2
    next_handle: int = 1
    inodes: tuple[InodeState, ...] = ()
    handles: tuple[HandleState, ...] = ()
