"""`full`: as `micro`, with the kernel that Debian installs on real machines."""

from __future__ import annotations

from ringzero.host.progress import QUIET, Progress
from ringzero.image import micro
from ringzero.image.names import IMAGES

RECIPE = micro.Recipe("full", kernel="linux-image-amd64")


@IMAGES.register("full")
def make(*, progress: Progress = QUIET, refresh: bool = False) -> micro.BootFiles:
    """Return the image's files."""
    return micro.ensure(RECIPE, progress=progress, refresh=refresh)
