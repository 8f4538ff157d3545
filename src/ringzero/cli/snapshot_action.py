"""What an action of `ringzero snapshot` is, and what the actions share."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from ringzero.cli.verb import Verb
from ringzero.registry import Registry

if TYPE_CHECKING:
    from ringzero.vm.saved.snapshot import Snapshot
    from ringzero.vm.saved.store import Node, Store

ACTIONS: Registry[type[Verb]] = Registry("snapshot command", "ringzero.cli.snapshot")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every action has."""
    parser.add_argument("--json", action="store_true", help="for programs")


def store() -> Store:
    """Return the user's snapshots."""
    from ringzero.vm.saved.store import Store

    return Store()


def facts(snapshot: Snapshot) -> dict[str, Any]:
    """Return what a snapshot is, for programs."""
    manifest = snapshot.manifest
    return {
        "name": snapshot.name,
        "id": manifest.identifier,
        "taken": manifest.taken / 1e9,
        "machine": manifest.config.get("name"),
        "memory": manifest.memory.size if manifest.memory is not None else None,
        "disks": [part.size for part in manifest.disks],
        "engine": manifest.engine,
        "directory": str(snapshot.path),
    }


def node_facts(node: Node) -> dict[str, Any]:
    """Return a snapshot's place in the tree and its sizes besides."""
    sizes = {"parent": node.parent, "own": node.own, "shared": node.shared}
    return {**facts(node.snapshot), **sizes}


def when(snapshot: Snapshot) -> str:
    """Return the time at which a snapshot was taken, for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.manifest.taken / 1e9))
