"""`micro`, the default image: Debian's cloud kernel and busybox."""

from __future__ import annotations

from ringzero.host.progress import QUIET, Progress
from ringzero.image import micro
from ringzero.image.names import IMAGES


@IMAGES.register("micro")
def make(*, progress: Progress = QUIET, refresh: bool = False) -> micro.BootFiles:
    """Return the image's files."""
    return micro.ensure(progress=progress, refresh=refresh)
