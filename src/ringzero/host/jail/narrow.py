"""Filters that a confined process's threads add for themselves, by what they do.

Loads nothing: threads of a process that is not confined ask here too.
"""

from __future__ import annotations

from collections.abc import Callable

_narrow: Callable[[str], None] | None = None


def serve_as(role: str) -> None:
    """Let the calling thread do only what threads of a `Role` do, where the process is confined."""
    if _narrow is not None:
        _narrow(role)


def have_threads(narrow: Callable[[str], None]) -> None:
    """Have threads that start from now on give `narrow` their role."""
    global _narrow
    _narrow = narrow
