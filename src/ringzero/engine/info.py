"""What `ringzero info` says of the engines on this host, as plain data."""

from __future__ import annotations

from typing import Any

from ringzero.engine import select
from ringzero.engine.contract import ENGINES, Usability
from ringzero.errors import RingzeroError


def engines() -> dict[str, dict[str, Any]]:
    """Return per engine: usability, reason, and what it offers; never raises for a host's sake."""
    return {name: _describe(name) for name in ENGINES.names()}


def chosen() -> str:
    """Return the line that says what `auto` takes here and why."""
    try:
        return select.choose_auto()[1]
    except RingzeroError as fault:
        return f"no engine: {fault.message}"


def _describe(name: str) -> dict[str, Any]:
    try:
        engine = ENGINES.get(name)()
        found = select.judge(engine)
        described: dict[str, Any] = {"usability": found.usability.value, "reason": found.reason}
        if found.usability is not Usability.UNUSABLE:
            described.update(engine.offers())
    except RingzeroError as fault:
        return {"usability": Usability.UNUSABLE.value, "reason": fault.message}
    return described
