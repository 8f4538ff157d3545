"""`ringzero pull`: bring a container's image into the store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.cli.verb import VERBS, Verb, print_json

if TYPE_CHECKING:
    from ringzero.image.oci.certificates import Trust


@VERBS.register("pull")
class Pull(Verb):
    summary = "bring a container's image from a registry into the store"
    examples = """\
  ringzero pull debian:12                   from Docker Hub
  ringzero pull localhost:5000/app:1.2      this machine's registry, by plain HTTP
  ringzero pull quay.example/app@sha256:... exactly this one
  ringzero pull oci:./layout:1.2            a directory in the OCI image layout
  ringzero pull docker-archive:app.tar      what `docker save` has written
  ringzero pull --cert-dir ./certs registry.example:5000/app

Credentials come from Docker's config.json and its credential helpers (`docker login`).
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags."""
        parser.add_argument("image", metavar="IMAGE", help="the image's name")
        parser.add_argument(
            "--tls-verify",
            type=_truth,
            default=True,
            metavar="BOOL",
            help="false: the registry's certificate is not checked, and it may speak plain HTTP",
        )
        parser.add_argument(
            "--cert-dir",
            metavar="DIR",
            help="certificates for this registry: *.crt (authorities), *.cert and *.key (our own)",
        )
        parser.add_argument("--quiet", "-q", action="store_true", help="show no progress")
        parser.add_argument("--json", action="store_true", help="the result as JSON")

    def execute(self, arguments: argparse.Namespace) -> int:
        """Pull it and print its digest."""
        from ringzero.host.progress import QUIET, Progress
        from ringzero.image.oci.boot import absolute
        from ringzero.image.oci.pull import pull
        from ringzero.image.oci.reference import parse
        from ringzero.settings import CACHE_DIR

        name = absolute(parse(arguments.image))
        progress = QUIET if arguments.quiet else Progress()
        image = pull(name, cache=CACHE_DIR.get(), progress=progress, trust=_trust(arguments))
        if arguments.json:
            print_json(image.summary())
        else:
            print(f"{image.name}@{image.digest}")
        return 0


def _trust(arguments: argparse.Namespace) -> Trust:
    from ringzero.errors import NotFoundError
    from ringzero.image.oci.certificates import Trust

    folder = Path(arguments.cert_dir) if arguments.cert_dir else None
    if folder is not None and not folder.is_dir():
        raise NotFoundError(f"--cert-dir {folder} is no directory")
    return Trust(arguments.tls_verify, folder)


def _truth(text: str) -> bool:
    """Return what a word says, as Go's programs read it: skopeo, podman and their kin."""
    known = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return known[text.lower()]
