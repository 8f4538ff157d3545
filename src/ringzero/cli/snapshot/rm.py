"""`ringzero snapshot rm`."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.cli.snapshot_action import ACTIONS, add_common, store
from ringzero.cli.verb import Verb, print_json
from ringzero.control.host import directory, owndisks
from ringzero.errors import RingzeroError
from ringzero.units import format_size

if TYPE_CHECKING:
    from ringzero.vm.saved.store import Store


@ACTIONS.register("rm")
class Remove(Verb):
    summary = "remove snapshots; what others share with them stays"
    examples = """\
  ringzero snapshot rm ready before-upgrade
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("snapshot", metavar="SNAPSHOT", nargs="+", help="a snapshot's name")
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        place, freed = store(), {}
        for name in arguments.snapshot:
            disks = _disks(place, name)
            freed[name] = place.remove(name)
            owndisks.release(disks, directory.descriptions())
            if not arguments.json:
                print(f"{name}  {format_size(freed[name])} freed", flush=True)
        if arguments.json:
            print_json([{"name": name, "freed": size} for name, size in freed.items()])
        return 0


def _disks(place: Store, name: str) -> list[Path]:
    """Return the disks that were made for the machine of a snapshot, as far as it can be read."""
    with contextlib.suppress(RingzeroError):
        return owndisks.in_tree(place.get(name).manifest.config)
    return []
