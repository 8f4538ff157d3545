"""ringzero: whole virtual machines on any Linux host, from one `pip install`.

`Machine` is the public entry (`AsyncMachine` for asyncio). The names here are loaded when
first asked for, so that `import ringzero` stays light.
"""

from __future__ import annotations

from ringzero.version import __version__

# As in `typing`, which is not loaded for it.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from ringzero.api.command import CommandResult
    from ringzero.api.options import RunOptions
    from ringzero.config.fields import MachineArguments
    from ringzero.config.machine import MachineConfig
    from ringzero.deployment.client import deploy
    from ringzero.errors import (
        CommandError,
        ConfigError,
        DeployError,
        GuestError,
        HostError,
        NotFoundError,
        RingzeroError,
        TimeoutExpiredError,
    )
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
    "DeployError",
    "Exit",
    "ExitReason",
    "GuestError",
    "HostError",
    "Identity",
    "Machine",
    "MachineArguments",
    "MachineConfig",
    "NotFoundError",
    "RingzeroError",
    "RunOptions",
    "Snapshot",
    "Store",
    "TimeoutExpiredError",
    "__version__",
    "deploy",
]

_HOMES = {
    "AsyncMachine": "ringzero.vm.aio",
    "CommandError": "ringzero.errors",
    "CommandResult": "ringzero.api.command",
    "ConfigError": "ringzero.errors",
    "DeployError": "ringzero.errors",
    "Exit": "ringzero.vm.exit",
    "ExitReason": "ringzero.vm.exit",
    "GuestError": "ringzero.errors",
    "HostError": "ringzero.errors",
    "Identity": "ringzero.vm.guest.identity",
    "Machine": "ringzero.vm.machine",
    "MachineArguments": "ringzero.config.fields",
    "MachineConfig": "ringzero.config.machine",
    "NotFoundError": "ringzero.errors",
    "RingzeroError": "ringzero.errors",
    "RunOptions": "ringzero.api.options",
    "Snapshot": "ringzero.vm.saved.snapshot",
    "Store": "ringzero.vm.saved.store",
    "TimeoutExpiredError": "ringzero.errors",
    "deploy": "ringzero.deployment.client",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        # From the name, Python itself finds what may have been meant.
        import sys

        raise AttributeError(
            f"module 'ringzero' has no attribute {name!r}", name=name, obj=sys.modules[__name__]
        )
    from importlib import import_module

    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
