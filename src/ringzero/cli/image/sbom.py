"""`ringzero image sbom`."""

from __future__ import annotations

import argparse
import sys

from ringzero.cli.image_action import ACTIONS, add_image, add_json, one
from ringzero.cli.text import printable
from ringzero.cli.verb import Verb


@ACTIONS.register("sbom")
class Sbom(Verb):
    summary = "tell the packages in an image: a list, or a CycloneDX document"
    examples = """\
  ringzero image sbom web:1            type, name and version of each package
  ringzero image sbom web:1 --json > web.cdx.json   CycloneDX 1.6 (pip install 'ringzero[sbom]')
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_image(parser)
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.host.progress import Progress
        from ringzero.image.oci.files import open_files
        from ringzero.image.sbom.packages import inventory

        image = one(arguments.name)
        with open_files(image) as files, Progress().step(f"reading {image.name}"):
            found = inventory(files)
        if arguments.json:
            from ringzero.image.sbom.cyclonedx import document

            sys.stdout.write(document(found, image.name, image.digest, image.created) + "\n")
        else:
            for package in found.packages:
                print(printable(f"{package.kind}  {package.name}  {package.version}"))
        for place in found.unread:
            print(f"ringzero: {place} was not read: rpm's databases are not", file=sys.stderr)
        return 0
