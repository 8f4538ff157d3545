"""`ringzero image load`."""

from __future__ import annotations

import argparse

from ringzero.cli.image_action import ACTIONS, add_json, show
from ringzero.cli.verb import CARRIED, SENT, Away, Verb


@ACTIONS.register("load")
class Load(Verb):
    summary = "bring all images of a file or layout into the store, with their names"
    away = Away(CARRIED, files={"file": SENT})
    examples = """\
  ringzero image load app.tar          what `docker save`, `podman save` or skopeo wrote
  ringzero image load app.tar.gz       gzip, bzip2, xz and zstd are unpacked
  docker save app | ringzero image load -
  ringzero image load ./layout         a directory in the OCI image layout
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", metavar="FILE|DIR|-", help="- is standard input")
        parser.add_argument("--quiet", "-q", action="store_true", help="show no progress")
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from pathlib import Path

        from ringzero.host.progress import QUIET, Progress
        from ringzero.image.oci.loading import incoming, load
        from ringzero.settings import CACHE_DIR

        cache, progress = CACHE_DIR.get(), QUIET if arguments.quiet else Progress()
        if arguments.file == "-":
            with incoming(cache) as path:
                found = load(path, cache=cache, progress=progress)
        else:
            found = load(Path(arguments.file), cache=cache, progress=progress)
        show([image.summary() for image in found], as_json=arguments.json)
        return 0
