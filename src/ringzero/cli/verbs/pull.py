"""`ringzero pull`: bring a container's image into the store."""

from __future__ import annotations

import argparse

from ringzero.cli.trust import add_flags, trust_of
from ringzero.cli.verb import CARRIED, SENT, VERBS, Away, Verb, print_json


@VERBS.register("pull")
class Pull(Verb):
    summary = "bring a container's image from a registry into the store"
    away = Away(CARRIED, files={"verify": SENT, "cert_dir": SENT})
    examples = """\
  ringzero pull debian:12                   from Docker Hub
  ringzero pull localhost:5000/app:1.2      this machine's registry, by plain HTTP
  ringzero pull quay.example/app@sha256:... exactly this one
  ringzero pull oci:./layout:1.2            a directory in the OCI image layout
  ringzero pull docker-archive:app.tar      what `docker save` has written
  ringzero pull --cert-dir ./certs registry.example:5000/app
  ringzero pull --verify release.pub registry.example/app   only what this key has signed

Credentials come from Docker's config.json and its credential helpers (`docker login`).
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags."""
        parser.add_argument("image", metavar="IMAGE", help="the image's name")
        add_flags(parser)
        parser.add_argument(
            "--verify",
            action="append",
            default=[],
            metavar="PUB",
            help="refuse the image unless this public key, or another one given so, has signed it",
        )
        parser.add_argument("--quiet", "-q", action="store_true", help="show no progress")
        parser.add_argument("--json", action="store_true", help="the result as JSON")

    def execute(self, arguments: argparse.Namespace) -> int:
        """Pull it and print its digest."""
        from pathlib import Path

        from ringzero.host.progress import QUIET, Progress
        from ringzero.image.oci.boot import absolute
        from ringzero.image.oci.pull import pull
        from ringzero.image.oci.reference import parse
        from ringzero.settings import CACHE_DIR

        name = absolute(parse(arguments.image))
        progress = QUIET if arguments.quiet else Progress()
        image = pull(
            name,
            cache=CACHE_DIR.get(),
            progress=progress,
            trust=trust_of(arguments),
            keys=[Path(key) for key in arguments.verify],
        )
        if arguments.json:
            print_json(image.summary())
        else:
            print(f"{image.name}@{image.digest}")
        return 0
