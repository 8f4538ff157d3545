"""Who does what a procedure asks for: a module for each part of the protocol."""

from __future__ import annotations

import functools
import importlib

_PARTS = (
    *("connect", "domain", "devices", "tuning", "agent", "events", "streams"),
    *("storage", "network", "networkupdate", "stats", "snapshot", "save"),
)


@functools.cache
def load() -> None:
    """Load all of them: they bind themselves (`ringzero.doors.libvirt.context`)."""
    for part in _PARTS:
        importlib.import_module(f"{__name__}.{part}")
