"""ringzero: whole virtual machines on any Linux host, from one `pip install`.

`Machine` is the public entry (`AsyncMachine` for asyncio); they are loaded when first asked
for, so that `import ringzero` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ringzero.errors import RingzeroError

if TYPE_CHECKING:
    from ringzero.vm.aio import AsyncMachine
    from ringzero.vm.machine import Machine

__version__ = "0.1.0"
__all__ = ["AsyncMachine", "Machine", "RingzeroError", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Machine":
        from ringzero.vm.machine import Machine

        return Machine
    if name == "AsyncMachine":
        from ringzero.vm.aio import AsyncMachine

        return AsyncMachine
    raise AttributeError(f"module 'ringzero' has no attribute {name!r}")
