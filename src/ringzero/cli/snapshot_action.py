"""What an action of `ringzero snapshot` is, and what the actions share."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from ringzero.cli.verb import Verb
from ringzero.registry import Registry

if TYPE_CHECKING:
    from ringzero.vm.saved.snapshot import Snapshot
    from ringzero.vm.saved.store import Store

ACTIONS: Registry[type[Verb]] = Registry("snapshot command", "ringzero.cli.snapshot")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every action has."""
    parser.add_argument("--json", action="store_true", help="for programs")


def store() -> Store:
    """Return the user's snapshots."""
    from ringzero.vm.saved.store import Store

    return Store()


def when(snapshot: Snapshot) -> str:
    """Return the time at which a snapshot was taken, for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.manifest.taken / 1e9))
