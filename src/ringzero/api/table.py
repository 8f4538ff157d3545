"""The one table of actions, by name."""

from __future__ import annotations

from ringzero.api.action import Action, declared
from ringzero.api.host import HostActions
from ringzero.api.machine import MachineActions
from ringzero.errors import NotFoundError

ACTIONS: dict[str, Action] = declared(MachineActions) | declared(HostActions)


def get(name: object) -> Action:
    """Return the action called `name`. Raises NotFoundError."""
    found = ACTIONS.get(name) if isinstance(name, str) else None
    if found is None:
        raise NotFoundError(
            f"there is no action {str(name)[:64]!r}", hint=f"known: {', '.join(ACTIONS)}"
        )
    return found
