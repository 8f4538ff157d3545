"""`ringzero snapshot tree`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ringzero.cli.snapshot_action import ACTIONS, add_common, store, when
from ringzero.cli.verb import Verb, print_json
from ringzero.units import format_size

if TYPE_CHECKING:
    from ringzero.vm.saved.store import Node


@ACTIONS.register("tree")
class Tree(Verb):
    summary = "show the snapshots as the tree that they are"
    examples = """\
  ringzero snapshot tree
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.control.host.actions import snapshot_summary

        nodes = store().tree()
        if arguments.json:
            print_json(list(map(snapshot_summary, nodes)))
            return 0
        children: dict[str | None, list[Node]] = {}
        for node in nodes:
            children.setdefault(node.parent, []).append(node)
        for line in _lines(children, None, ""):
            print(line)
        return 0


def _lines(
    children: dict[str | None, list[Node]], parent: str | None, indent: str
) -> Iterator[str]:
    """Yield the lines of a subtree; its depth is limited by the lineage that is kept."""
    mine = children.get(parent, [])
    for index, node in enumerate(mine):
        last = index == len(mine) - 1
        branch, below = ("", "") if parent is None else (("└─ ", "   ") if last else ("├─ ", "│  "))
        size, taken = format_size(node.own), when(node.snapshot.manifest.taken / 1e9)
        yield f"{indent}{branch}{node.snapshot.name}  {taken}  {size}"
        yield from _lines(children, node.snapshot.name, indent + below)
