"""`ringzero snapshot import`."""  # noqa: N999 - an action is called like its module

from __future__ import annotations

import argparse

from ringzero.cli.snapshot_action import ACTIONS, add_common, store
from ringzero.cli.verb import CARRIED, SENT, Away, Verb, print_json


@ACTIONS.register("import")
class Import(Verb):
    summary = "take an exported snapshot in, verified"
    away = Away(CARRIED, files={"file": SENT})
    examples = """\
  ringzero snapshot import ready.rzs
  ringzero snapshot import ready.rzs --name theirs
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", metavar="FILE", help="the exported file")
        parser.add_argument("--name", help="what to call it (default: as it was called)")
        add_common(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from pathlib import Path

        from ringzero.control.host.actions import snapshot_facts
        from ringzero.vm.saved.transfer import import_file

        taken = import_file(store(), Path(arguments.file), arguments.name)
        print_json(snapshot_facts(taken)) if arguments.json else print(taken.name)
        return 0
