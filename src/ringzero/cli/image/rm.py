"""`ringzero image rm`."""

from __future__ import annotations

import argparse

from ringzero.cli.image_action import ACTIONS, add_images, add_json, show
from ringzero.cli.verb import Verb


@ACTIONS.register("rm")
class Remove(Verb):
    summary = "remove images from the cache"
    examples = """\
  ringzero image rm micro debian:12
  ringzero image rm --force debian:12  though a machine still needs it
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_images(parser)
        parser.add_argument(
            "--force", "-f", action="store_true", help="also those that machines need to start"
        )
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.control.host.directory import users_of
        from ringzero.image import stored

        users = stored.NOBODY if arguments.force else users_of
        gone = [image for name in arguments.name for image in stored.remove(name, users)]
        show(gone, as_json=arguments.json)
        return 0
