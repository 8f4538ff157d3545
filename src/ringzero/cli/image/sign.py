"""`ringzero image sign`."""

from __future__ import annotations

import argparse

from ringzero.cli import signing
from ringzero.cli.image_action import ACTIONS, add_image, add_json, one
from ringzero.cli.verb import CARRIED, SENT, Away, Verb, print_json


@ACTIONS.register("sign")
class Sign(Verb):
    summary = "sign an image of the store; push takes the signature along"
    away = Away(CARRIED, files={"key": SENT})
    examples = """\
  ringzero image sign web:1 --key release.key
  ringzero image sign web:1 --key release.key --name registry.example/web

What is signed is the digest of its manifest, in cosign's form: `cosign verify --key release.pub`
takes it from the registry.
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_image(parser)
        parser.add_argument("--key", required=True, metavar="FILE", help="the private key, in PEM")
        parser.add_argument(
            "--name", dest="as_name", metavar="NAME", help="what it is called where it goes"
        )
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.image.oci.reference import parse
        from ringzero.image.oci.signing import kept

        image = one(arguments.name)
        name = parse(arguments.as_name or image.name)
        kept.sign(image, name, signing.private_key(arguments.key))
        if arguments.json:
            print_json({"digest": image.digest, "signatures": len(kept.load(image))})
        else:
            print(f"{image.name}@{image.digest}")
        return 0
