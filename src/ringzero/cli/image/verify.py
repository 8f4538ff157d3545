"""`ringzero image verify`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ringzero.cli.image_action import ACTIONS, add_image, add_json, one
from ringzero.cli.verb import CARRIED, SENT, Away, Verb, print_json

if TYPE_CHECKING:
    from ringzero.image.oci.store import StoredImage


@ACTIONS.register("verify")
class Verify(Verb):
    summary = "read an image wholly, and compare it with its digests and signatures"
    away = Away(CARRIED, files={"key": SENT})
    examples = """\
  ringzero image verify web:1          exit code 1 where something is wrong or missing
  ringzero image verify web:1 --key release.pub    and one of the keys has to have signed it
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        add_image(parser)
        parser.add_argument(
            "--key",
            action="append",
            default=[],
            metavar="FILE",
            help="a public key, in PEM; of several, one has to have signed",
        )
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.host.progress import Progress
        from ringzero.image.oci.verify import verify
        from ringzero.plain import to_plain
        from ringzero.settings import CACHE_DIR
        from ringzero.units import format_size

        image = one(arguments.name)
        _check_signatures(image, arguments.key)
        found = verify(image, CACHE_DIR.get(), Progress())
        if arguments.json:
            print_json([to_plain(item) for item in found])
        else:
            for item in found:
                size = format_size(item.size)
                print(f"{item.state:8} {item.what:14} {item.digest}  {size}")
        return 0 if all(item.state == "right" for item in found) else 1


def _check_signatures(image: StoredImage, paths: list[str]) -> None:
    """Raise SignatureError where none of the keys in files has signed an image."""
    if not paths:
        return
    from pathlib import Path

    from ringzero.image.oci.signing import kept, keys, verification

    known = [keys.load_public(Path(path)) for path in paths]
    verification.check(image.name, image.digest, kept.load(image), known)
