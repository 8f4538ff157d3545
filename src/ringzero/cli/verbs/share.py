"""`ringzero share`: folders of the host that a machine has."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from ringzero.api.values import ShareSummary
from ringzero.cli.machines import add_json, add_name, named
from ringzero.cli.verb import AS_IS, BARRED, VERBS, Away, Verb, print_json
from ringzero.errors import InvalidValueError

_CHANGES = ("add", "rm")


@VERBS.register("share")
class Share(Verb):
    summary = "list, add or remove the folders of this host that a machine has"
    away = Away(AS_IS, actions=True)
    examples = """\
  ringzero share web                    /home/me/src -> /src
  ringzero share web add ./data:/data:ro
  ringzero share web rm /data
  ringzero share web rm --force /data   while programs of the guest use it
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the machine, and what is to be changed."""
        add_json(parser)
        parser.add_argument(
            "--force", action="store_true", help="rm: also while the guest uses the folder"
        )
        add_name(parser)
        parser.add_argument("change", nargs="?", choices=_CHANGES, help="add or rm")
        parser.add_argument(
            "folders",
            nargs="*",
            metavar="HOST:GUEST[:ro]",
            help="folders to add; to remove one, its place in the guest",
        )

    def files(self, arguments: argparse.Namespace) -> Mapping[str, str]:
        """A folder to add is one of the caller's host; to remove one, its place is given."""
        return {"folders": BARRED} if arguments.change == "add" else {}

    def execute(self, arguments: argparse.Namespace) -> int:
        """List them, or change them and list what was changed."""
        machine = named(arguments)
        if (arguments.change is not None) != bool(arguments.folders):
            raise InvalidValueError(
                "which folders?", hint=f"ringzero share {arguments.machine} add ./src:/src"
            )
        found: list[ShareSummary] = []
        if arguments.change is None:
            found = machine.shares()
        for text in arguments.folders:
            if arguments.change == "add":
                found.append(machine.share(_absolute(text)))
            else:
                found.append(machine.unshare(text, force=arguments.force))
        if arguments.json:
            print_json(found)
            return 0
        for share in found:
            suffix = " (read-only)" if share["read_only"] else ""
            print(f"{share['path']} -> {share['target']}{suffix}")
        return 0


def _absolute(text: str) -> str:
    """Return the folder as the machine's process, which is elsewhere, understands it."""
    from ringzero.config.devices.share import ShareConfig

    return ShareConfig.parse(text).absolute().spelled()
