"""`ringzero push`: an image of the store to a registry."""

from __future__ import annotations

import argparse

from ringzero.cli import signing
from ringzero.cli.trust import add_flags, trust_of
from ringzero.cli.verb import CARRIED, SENT, VERBS, Away, Verb, print_json


@VERBS.register("push")
class Push(Verb):
    summary = "take an image of the store to a registry"
    away = Away(CARRIED, files={"sign": SENT, "cert_dir": SENT})
    examples = """\
  ringzero push localhost:5000/web:1.2          by the name that it has
  ringzero push web:1.2 registry.example/web:1.2   by another one
  ringzero push --sign release.key localhost:5000/web:1.2   with a signature as cosign's

What the registry has already is not sent. Large layers of images that were built here are several:
of one in which a package has changed little more than that package goes over. Credentials come from
Docker's config.json and its credential helpers (`docker login`).
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags."""
        parser.add_argument("image", metavar="IMAGE", help="a name, or the beginning of a digest")
        parser.add_argument("target", nargs="?", metavar="TARGET", help="its name there")
        add_flags(parser)
        parser.add_argument("--sign", metavar="KEY", help="sign it by this private key, too")
        parser.add_argument("--quiet", "-q", action="store_true", help="show no progress")
        parser.add_argument("--json", action="store_true", help="the result as JSON")

    def execute(self, arguments: argparse.Namespace) -> int:
        """Push it and print its digest."""
        from ringzero.host.progress import QUIET, Progress
        from ringzero.image.oci.push import find, push
        from ringzero.image.oci.reference import parse_reference
        from ringzero.image.oci.signing import kept
        from ringzero.settings import CACHE_DIR

        cache = CACHE_DIR.get()
        image = find(arguments.image, cache)
        target = parse_reference(arguments.target or arguments.image)
        if arguments.sign:
            kept.sign(image, target, signing.private_key(arguments.sign))
        progress = QUIET if arguments.quiet else Progress()
        sent = push(image, target, cache=cache, progress=progress, trust=trust_of(arguments))
        if arguments.json:
            print_json({"name": str(target), "digest": image.digest, "sent": sent})
        else:
            print(f"{target.familiar}@{image.digest}")
        return 0
