"""Debian's archive by whatever this host has: apt-get where it is installed, else our own code."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ringzero.host.progress import QUIET, Progress

if TYPE_CHECKING:
    from ringzero.image.packages import Package


class Archive(Protocol):
    """Packages by name, for one architecture (`packages.Apt`, `debian.mirror.Mirror`)."""

    def refresh(self, max_age: float = ...) -> None:
        """Have lists younger than `max_age` seconds."""
        ...

    def resolve(self, names: Sequence[str], *, dependencies: bool = True) -> list[Package]:
        """Return packages, with all that they depend on unless told otherwise."""
        ...

    def depends(self, name: str) -> list[str]:
        """Return the names that a package depends on."""
        ...

    def download(self, packages: Sequence[Package]) -> list[Path]:
        """Return the files of packages."""
        ...


def debian(
    *,
    architecture: str = "amd64",
    suite: str | None = None,
    cache: Path | None = None,
    progress: Progress = QUIET,
) -> Archive:
    """Return Debian's archive for a guest of `architecture`; `suite` is preferred, if given."""
    if shutil.which("apt-get") is not None:
        from ringzero.image.packages import Apt

        return Apt(architecture=architecture, suite=suite, cache=cache, progress=progress)
    from ringzero.image.debian.mirror import Mirror

    return Mirror(architecture=architecture, suite=suite, cache=cache, progress=progress)
