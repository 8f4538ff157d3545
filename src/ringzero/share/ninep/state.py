"""What a 9p server's guest holds, as a saved machine has it."""

from __future__ import annotations

from typing import Any

from ringzero.records import record


@record
class FidState:
    """What the guest calls `number`, in the share with this number; None is where shares are.

    `flags` are O_* of what is open, None of what is not.
    """

    number: int
    share: int | None
    node: Any
    uid: int
    flags: int | None = None


@record
class NinepState:
    """The longest message that was settled (0: none yet), and everything that the guest holds."""

    size: int = 0
    fids: tuple[FidState, ...] = ()
