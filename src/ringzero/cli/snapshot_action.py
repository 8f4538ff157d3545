"""What an action of `ringzero snapshot` is, and what the actions share."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from ringzero.cli.verb import Verb
from ringzero.errors import NotFoundError
from ringzero.registry import Registry

if TYPE_CHECKING:
    from ringzero.api.values import SnapshotSummary
    from ringzero.control.host.operations import HostOperations
    from ringzero.vm.saved.store import Store

ACTIONS: Registry[type[Verb]] = Registry("snapshot command", "ringzero.cli.snapshot")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every action has."""
    parser.add_argument("--json", action="store_true", help="for programs")


def store() -> Store:
    """Return the user's snapshots."""
    from ringzero.vm.saved.store import Store

    return Store()


def find(host: HostOperations, name: str) -> SnapshotSummary:
    """Return what a host tells of the snapshot called `name`. Raises NotFoundError."""
    for facts in host.snapshots():
        if facts["name"] == name:
            return facts
    raise NotFoundError(
        f"no snapshot called {name!r}", hint="`ringzero snapshot ls` lists those there are"
    )


def when(taken: float) -> str:
    """Return the time at which a snapshot was taken, in seconds since 1970, for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(taken))
