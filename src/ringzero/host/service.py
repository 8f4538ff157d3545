"""Threads that serve a machine: what goes wrong on one of them ends the machine, by its name.

In a confined process (`ringzero.host.jail`) each has less of it, by what it does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

# Hears of an exception that ends a thread.
OnFault = Callable[[BaseException], None]


class Server(Protocol):
    """Who has such a thread; `on_fault` may be set until something goes wrong."""

    on_fault: OnFault | None


class ServiceThread(threading.Thread):
    """A daemon thread of `server`'s that runs `work`; an exception goes to `server.on_fault`.

    Where nobody is named it goes to `threading.excepthook`, as that of any thread does.
    """

    def __init__(self, server: Server, work: Callable[[], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._server = server
        self._work = work

    def run(self) -> None:
        try:
            self._work()
        except BaseException as fault:
            report = self._server.on_fault
            if report is None:
                raise
            report(fault)


_narrow: Callable[[str], None] | None = None


def serve_as(role: str) -> None:
    """Let the calling thread do only what a `ringzero.host.jail.roles.Role` does.

    Where the process is not confined, nothing changes.
    """
    if _narrow is not None:
        _narrow(role)


def have_threads(narrow: Callable[[str], None]) -> None:
    """Have threads give `narrow` their role from now on."""
    global _narrow
    _narrow = narrow
