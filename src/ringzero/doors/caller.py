"""Who speaks through a door, and what is allowed."""

from __future__ import annotations

from ringzero.api.action import Action
from ringzero.errors import ForbiddenError
from ringzero.records import record


@record
class Caller:
    """One who asks. `name` is for the log: a user's number, or a token's name.

    One who only `reads` is refused every action that may change something.
    """

    name: str
    reads: bool = False

    def require(self, action: Action) -> None:
        """Raise ForbiddenError where the action is not allowed."""
        if self.reads and not action.reads:
            self.refuse(f"{action.name!r} changes something")

    def refuse(self, why: str) -> None:
        """Raise ForbiddenError where the caller only reads."""
        if self.reads:
            raise ForbiddenError(
                f"{why}, and this connection may only read",
                hint="use the socket, or a token, that is not read-only",
            )
