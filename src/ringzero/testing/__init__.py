"""For tests of other projects: a machine for each test, and the contracts of devices and disks.

`ringzero.testing.plugin` is a plugin that pytest finds by itself: its fixture
`ringzero_machine` is a booted machine, forked for each test. `DeviceContract` and
`DiskContract` are suites to derive from. This module is light; pytest is needed for the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringzero.testing.device import DeviceContract
    from ringzero.testing.disk import DiskContract

__all__ = ["DeviceContract", "DiskContract"]

_HOMES = {
    "DeviceContract": "ringzero.testing.device",
    "DiskContract": "ringzero.testing.disk",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'ringzero.testing' has no attribute {name!r}")
    return getattr(import_module(home), name)
