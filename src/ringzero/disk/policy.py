"""Where the names in an image may lead.

A disk image names other files (its backing file, its extents), and whoever
made the image chose the names. So a name in an image
- is a plain path: a protocol (`nbd:`, `https:`) is refused (`filenames`);
- never leads to a device, a FIFO or the kernel's file systems, unless the
  user named a directory of devices in `backing_roots`;
- may lead anywhere below the image's own directory, `backing_roots`, or
  RINGZERO_BACKING_DIRS, with symbolic links followed first;
- elsewhere only to a backing file that belongs to the user or to root and
  that is a disk image by its content (raw, which is any file, is not).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ringzero import settings
from ringzero.disk.probing import probe
from ringzero.disk.storage import FileStorage, Storage
from ringzero.errors import DiskError, NotFoundError
from ringzero.records import record

_KERNEL_TREES = ("/dev", "/proc", "/sys")


def warn(text: str) -> None:
    """Tell the user of Python something that is no error."""
    import warnings

    warnings.warn(text, stacklevel=2)


@record
class Rules:
    """What holds for a whole chain while it is opened."""

    # Resolved directories that names may lead to.
    roots: tuple[str, ...]
    lock: bool
    sync: bool
    # Takes what the user should know of.
    tell: Callable[[str], None] = warn

    @classmethod
    def make(
        cls,
        roots: Iterable[Path | str],
        *,
        lock: bool = True,
        sync: bool = True,
        tell: Callable[[str], None] = warn,
    ) -> Rules:
        """Return rules with `roots` and the user's settings."""
        trusted = (*map(Path, roots), *settings.BACKING_DIRS.get())
        return cls(tuple(os.path.realpath(root) for root in trusted), lock, sync, tell)


@record
class Place:
    """A file that an image may name: its path, its state, and whether it is near the image."""

    path: Path
    status: os.stat_result
    near: bool

    @property
    def identity(self) -> tuple[int, int]:
        return self.status.st_dev, self.status.st_ino


def beside(image: Path, name: str) -> Path:
    """Return the path of a name that is written in `image`."""
    # Relative to where the image really is, as in QEMU: the link's directory.
    return image.absolute().parent / name


def judge(image: Path, name: str, rules: Rules) -> Place:
    """Return where a name in `image` leads.

    Refuses what is no regular file by its mode, before it is opened. Raises
    NotFoundError, DiskError.
    """
    path = beside(image, name)
    real = os.path.realpath(path)
    try:
        status = os.stat(real)  # noqa: PTH116 - a chain opens faster without a Path
    except FileNotFoundError as fault:
        raise missing(image, name, real) from fault
    except OSError as fault:
        raise DiskError(f"{image} needs {name}: {fault.strerror}", path=real) from fault
    special = not stat.S_ISREG(status.st_mode) or _is_below(real, _KERNEL_TREES)
    # /dev/shm holds ordinary files.
    special = special and not (stat.S_ISREG(status.st_mode) and _is_below(real, ("/dev/shm",)))
    trusted = [root for root in rules.roots if _is_below(root, _KERNEL_TREES)]
    if special and not _is_below(real, trusted):
        raise DiskError(
            f"{image} names a device or special file: {name}",
            hint="devices are refused unless backing_roots names their directory",
            path=real,
        )
    return Place(path, status, is_near(image, real, rules))


def missing(image: Path, name: str, path: str | Path) -> NotFoundError:
    """Return the error for a file that `image` names and that is not there."""
    return NotFoundError(
        f"{image} needs {name}, which does not exist",
        hint="move the file back, or name another with `ringzero disk rebase -u -b`",
        path=path,
    )


def is_near(image: Path, real: str, rules: Rules) -> bool:
    """Whether a resolved path is in the image's directory or in one that is trusted."""
    # An image given by a link lives where the link leads, and where it is.
    given = os.path.realpath(image.parent)
    led = os.path.dirname(os.path.realpath(image))  # noqa: PTH120 - as above
    return _is_below(real, (given, led, *rules.roots))


def refuse_strange(
    image: Path, storage: FileStorage, view: Storage, name: str, format: str | None
) -> None:
    """Raise DiskError when a backing file that is not near the image is not to be trusted.

    `view` is the part of the file `storage` that the image means.
    """
    hint = "if you trust the image, allow the directory with RINGZERO_BACKING_DIRS or backing_roots"
    if os.fstat(storage.fd).st_uid not in (0, os.geteuid()):
        raise DiskError(
            f"{image} names a backing file that belongs to somebody else: {name}",
            hint=hint,
            path=storage.path,
        )
    if format == "raw" or probe(view) == "raw":
        raise DiskError(
            f"{image} names a file outside its directory, and it is no disk image "
            f"by its content: {name}",
            hint=hint,
            path=storage.path,
        )


def _is_below(path: str, trees: Sequence[str]) -> bool:
    """Whether a resolved path is one of `trees` or in one of them."""
    return any(path == tree or path.startswith(tree.rstrip("/") + "/") for tree in trees)
