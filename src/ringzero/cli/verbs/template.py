"""`ringzero template`: saved starts, from which `run` goes on instead of booting."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.cli.machines import add_json, ago, table
from ringzero.cli.verb import AS_IS, VERBS, Away, Verb, print_json
from ringzero.errors import NotFoundError

if TYPE_CHECKING:
    from ringzero.vm.saved.templates import Entry, Templates


@VERBS.register("template")
class Template(Verb):
    summary = "list and remove saved starts, from which `run` goes on instead of booting"
    away = Away(AS_IS)
    examples = """\
  ringzero template ls                what there is, what it takes on the disk, its last use
  ringzero template rm 3f2a           the next run of that description boots, and leaves another
  ringzero template prune             what is over the limit (RINGZERO_TEMPLATES), or of no use
  ringzero template prune --all

The first `run` of a description leaves one behind; docs/starts.md tells of which.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the actions and their flags."""
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        add_json(actions.add_parser("ls", help="list them, the latest used first"))
        removal = actions.add_parser("rm", help="remove some")
        removal.add_argument("id", nargs="+", metavar="ID", help="an id, or its beginning")
        add_json(removal)
        prune = actions.add_parser("prune", help="remove those over the limit, the oldest first")
        prune.add_argument("--all", action="store_true", help="remove every one")
        add_json(prune)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Do the action."""
        from ringzero.settings import TEMPLATES
        from ringzero.vm.saved.templates import Templates

        store = Templates()
        if arguments.action == "ls":
            entries = store.entries()
            if arguments.json:
                print_json([summary(entry) for entry in entries])
            else:
                _show(entries)
            return 0
        if arguments.action == "rm":
            gone = _find(store, arguments.id)
            for entry in gone:
                store.remove(entry.name)
        else:
            gone = store.prune(0 if arguments.all else TEMPLATES.get())
        if arguments.json:
            print_json([summary(entry) for entry in gone])
        else:
            from ringzero.units import format_size

            for entry in gone:
                print(entry.name[:12])
            print(f"{format_size(sum(entry.size for entry in gone))} freed")
        return 0


def _find(store: Templates, wanted: Sequence[str]) -> list[Entry]:
    """Return the templates whose ids begin so. Raises NotFoundError."""
    entries, found = store.entries(), {}
    for text in wanted:
        chosen = [entry for entry in entries if text and entry.name.startswith(text)]
        if not chosen:
            known = ", ".join(entry.name[:12] for entry in entries) or "none"
            raise NotFoundError(f"no template {text!r}", hint=f"there are: {known}")
        found.update({entry.name: entry for entry in chosen})
    return list(found.values())


def summary(entry: Entry) -> dict[str, Any]:
    """Return a template as plain data."""
    return {
        "id": entry.name,
        "image": image(entry),
        "size": entry.size,
        "used": entry.used,
        "description": entry.description,
        "fault": entry.fault,
    }


def image(entry: Entry) -> str:
    """Return the name of the image that a template is of, or the path of its kernel."""
    from ringzero.image import micro

    kernel = entry.description.get("kernel")
    return micro.image_of(Path(kernel)) or str(kernel) if kernel else ""


def _show(entries: Sequence[Entry]) -> None:
    from ringzero.units import format_size

    rows = []
    for entry in entries:
        of = entry.description
        kinds = ", ".join(device["kind"] for device in of.get("devices", ()))
        cells = [entry.fault, "", "", "", ""]
        if not entry.fault:
            memory = format_size(of["memory"])
            cells = [image(entry), of["engine"], memory, str(of["cpus"]), kinds or "-"]
        rows.append([entry.name[:12], *cells, format_size(entry.size), ago(entry.used)])
    table(("ID", "IMAGE", "ENGINE", "MEMORY", "CPUS", "DEVICES", "SIZE", "USED"), rows)
