"""`ringzero create`: describe a machine without starting it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringzero.cli.machine_config import release_disks
from ringzero.cli.verb import VERBS, print_json
from ringzero.cli.verbs.run import Run, claim

if TYPE_CHECKING:
    import argparse

    from ringzero.remote.client import Client


@VERBS.register("create")
class Create(Run):
    name = "create"
    summary = "describe a machine without starting it; `start` does that"
    examples = """\
  ringzero create --name web                      the default guest, as `run -d` would start it
  ringzero create --name db --memory 2G --disk db.qcow2 -- /sbin/service
  ringzero create --name own --kernel vmlinuz --initrd initrd.img
  ringzero start web                              and now it runs
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags."""
        parser.usage = "ringzero create [FLAGS] [IMAGE] [-- CMD ...]"
        self.add_machine_flags(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Claim the name, and leave the description for `start`."""
        from ringzero.control.host.claims import define

        # Once it runs, it is as one that was started by `run -d`.
        arguments.detach = True
        arguments.tty = arguments.interactive = arguments.stats = arguments.no_wait = False
        config = self.describe(arguments)
        try:
            found = define(claim(arguments, config, foreground=False))
        finally:
            release_disks(config)
        if arguments.json:
            print_json(found.summary())
        else:
            print(found.name)
        return 0

    def execute_there(self, client: Client, arguments: argparse.Namespace) -> int:
        """Do it by the other host's actions."""
        from ringzero.cli import remote_run

        return remote_run.create(client, arguments)
