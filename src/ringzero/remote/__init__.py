"""Machines of another host: `Client` and, for asyncio, `AsyncClient`.

    from ringzero.remote import Client

    with Client("ssh://ana@server") as host:
        print([machine["name"] for machine in host.machines()])
        print(host.machine("web").run(["uname", "-a"], text=True).stdout)

Both speak the HTTP API of `ringzero serve`, and have its actions for methods.
"""

from __future__ import annotations

# As in `typing`, which is not loaded for it.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from ringzero.remote.aio import AsyncClient, AsyncMachine
    from ringzero.remote.client import Client
    from ringzero.remote.machine import Machine

__all__ = ["AsyncClient", "AsyncMachine", "Client", "Machine"]

_PLACES = {
    "AsyncClient": "ringzero.remote.aio",
    "AsyncMachine": "ringzero.remote.aio",
    "Client": "ringzero.remote.client",
    "Machine": "ringzero.remote.machine",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
