"""ringzero: whole virtual machines on any Linux host, from one `pip install`.

`Machine` is the public entry (`AsyncMachine` for asyncio). The names here are loaded when
first asked for, so that `import ringzero` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ringzero.errors import (
    CommandError,
    ConfigError,
    GuestError,
    HostError,
    NotFoundError,
    RingzeroError,
    TimeoutExpiredError,
)
from ringzero.version import __version__

if TYPE_CHECKING:
    from ringzero.api.command import CommandResult
    from ringzero.config.machine import MachineConfig
    from ringzero.vm.aio import AsyncMachine
    from ringzero.vm.exit import Exit, ExitReason
    from ringzero.vm.guest.identity import Identity
    from ringzero.vm.machine import Machine
    from ringzero.vm.saved.snapshot import Snapshot
    from ringzero.vm.saved.store import Store

__all__ = [
    "AsyncMachine",
    "CommandError",
    "CommandResult",
    "ConfigError",
    "Exit",
    "ExitReason",
    "GuestError",
    "HostError",
    "Identity",
    "Machine",
    "MachineConfig",
    "NotFoundError",
    "RingzeroError",
    "Snapshot",
    "Store",
    "TimeoutExpiredError",
    "__version__",
]

_HOMES = {
    "AsyncMachine": "ringzero.vm.aio",
    "CommandResult": "ringzero.api.command",
    "Exit": "ringzero.vm.exit",
    "ExitReason": "ringzero.vm.exit",
    "Identity": "ringzero.vm.guest.identity",
    "Machine": "ringzero.vm.machine",
    "MachineConfig": "ringzero.config.machine",
    "Snapshot": "ringzero.vm.saved.snapshot",
    "Store": "ringzero.vm.saved.store",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'ringzero' has no attribute {name!r}")
    return getattr(import_module(home), name)
