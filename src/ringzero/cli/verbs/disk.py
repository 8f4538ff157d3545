"""`ringzero disk`: make, look at, convert and mend disk images."""

from __future__ import annotations

import argparse

from ringzero.cli.verb import VERBS, Verb


@VERBS.register("disk")
class Disk(Verb):
    summary = "make, look at, convert and mend disk images"
    examples = """\
  ringzero disk create -f qcow2 disk.qcow2 20G
  ringzero disk info disk.qcow2
  ringzero disk convert -O vhdx disk.vmdk disk.vhdx
  ringzero disk compare disk.vmdk disk.vhdx

Names and options are those of qemu-img. `ringzero disk COMMAND --help` tells more.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the actions, each with its own arguments."""
        from ringzero.cli.disk_action import ACTIONS

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
            sub.set_defaults(disk_action=action)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Do the action."""
        return int(arguments.disk_action.execute(arguments))
