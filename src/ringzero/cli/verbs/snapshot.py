"""`ringzero snapshot`: machines written down, to go on from."""

from __future__ import annotations

import argparse

from ringzero.cli.verb import VERBS, Verb


@VERBS.register("snapshot")
class Snapshot(Verb):
    summary = "save machines as they are, and go on from there"
    examples = """\
  ringzero snapshot save web ready             the machine web, as it is now, runs on
  ringzero snapshot tree
  ringzero snapshot restore ready --name web2  another machine that goes on from there
  ringzero snapshot export ready ready.rzs

`ringzero snapshot COMMAND --help` tells more.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the actions, each with its own arguments."""
        from ringzero.cli.snapshot_action import ACTIONS

        actions = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)
        for name in ACTIONS.names():
            action = ACTIONS.get(name)()
            sub = actions.add_parser(
                name,
                help=action.summary,
                description=action.summary[0].upper() + action.summary[1:] + ".",
                epilog=action.examples and f"examples:\n{action.examples}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            action.configure(sub)
            sub.set_defaults(snapshot_action=action)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Do the action."""
        return int(arguments.snapshot_action.execute(arguments))
