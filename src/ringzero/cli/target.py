"""Whose machines a command line is about: this host's, or, with --host, another one's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringzero.control.host.operations import GuestOperations, HostOperations
    from ringzero.remote.client import Client

_remote: Client | None = None


def host() -> HostOperations:
    """Return what does a host's actions."""
    if _remote is not None:
        return _remote
    from ringzero.control.host import client

    return client.host()


def machine(name: str, *, odd: bool = False) -> GuestOperations:
    """Return the machine called `name`; with `odd`, also what is none and has its name.

    Raises NotFoundError, ControlError.
    """
    return host().machine(name, odd=odd)


def remote() -> Client | None:
    """Return the client of another host; None where the command line is about this one."""
    return _remote


@contextlib.contextmanager
def using(client: Client) -> Iterator[None]:
    """Have the block be about the host of a client."""
    global _remote
    before, _remote = _remote, client
    try:
        yield
    finally:
        _remote = before
