"""`backports`: as `micro`, with the newer cloud kernel of Debian 12's backports."""

from __future__ import annotations

from ringzero.host.progress import QUIET, Progress
from ringzero.image import micro
from ringzero.image.names import IMAGES

RECIPE = micro.Recipe("backports", suite="bookworm-backports")


@IMAGES.register("backports")
def make(*, progress: Progress = QUIET, refresh: bool = False) -> micro.BootFiles:
    """Return the image's files."""
    return micro.ensure(RECIPE, progress=progress, refresh=refresh)
