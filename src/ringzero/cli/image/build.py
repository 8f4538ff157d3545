"""`ringzero image build`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ringzero.cli import building
from ringzero.cli.image_action import ACTIONS, add_json, show
from ringzero.cli.verb import BARRED, CARRIED, ENV, SENT, Away, Verb


@ACTIONS.register("build")
class Build(Verb):
    summary = "build an image from a Vmfile, or put one of ringzero's own together"
    away = Away(CARRIED)
    examples = """\
  ringzero image build -t web:1 .     from the Vmfile (or Dockerfile) of this directory
  ringzero image build                the default guest, if it is not there yet
  ringzero image build --refresh      the same from the newest Debian packages
  ringzero image build full           as micro, with the kernel of real machines
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "name",
            nargs="?",
            default="micro",
            metavar="DIR|NAME",
            help="the directory with the Vmfile; or the name of an own image (micro)",
        )
        parser.add_argument("--refresh", action="store_true", help="ask for newer packages")
        building.configure(parser)
        add_json(parser)

    def files(self, arguments: argparse.Namespace) -> Mapping[str, str]:
        """The directory and its Vmfile; secrets are read from where the build is."""
        found = {"file": SENT, "build_arg": ENV, "secret": BARRED}
        return found | {"name": SENT} if building.is_build(arguments) else found

    def execute(self, arguments: argparse.Namespace) -> int:
        if building.is_build(arguments):
            show([building.build(arguments)], as_json=arguments.json)
            return 0
        from ringzero.host.progress import Progress
        from ringzero.image import stored
        from ringzero.image.names import IMAGES

        make = IMAGES.get(arguments.name)
        made: Any = make(progress=Progress(), refresh=arguments.refresh)
        show([stored.own_summary(made)], as_json=arguments.json)
        return 0
