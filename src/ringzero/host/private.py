"""Files and directories that are this user's alone, or that nobody else could have changed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ringzero.errors import StateError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def is_trusted(status: os.stat_result) -> bool:
    """Whether only those may write to a file who may have us run anything anyway.

    These are this user, root, and whoever owns this package.
    """
    owners = (0, os.geteuid(), os.stat(__file__).st_uid)  # noqa: PTH116 - at each start
    return status.st_uid in owners and not status.st_mode & _OTHERS_WRITE


def is_trusted_directory(path: Path) -> bool:
    """Whether that is so of a directory and of all that is in it."""
    try:
        with os.scandir(path) as entries:
            return is_trusted(path.stat()) and all(is_trusted(one.stat()) for one in entries)
    except OSError:
        return False


def open_private(path: Path | str, within: int | None = None, *, directory: bool = False) -> int:
    """Return a descriptor of a regular file, or a directory, to read; `within` an open directory.

    Raises StateError for a link, for what is another user's, or what others may read or write,
    OSError where there is none. It never waits, whatever stands there.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | (os.O_DIRECTORY if directory else 0), dir_fd=within)
    except OSError as fault:
        # ELOOP and ENOTDIR: a link, or another kind of thing, is in its place.
        if isinstance(fault, FileNotFoundError | PermissionError):
            raise
        raise StateError(f"{path} is not used: {fault.strerror}", path=path) from fault
    status = os.fstat(descriptor)
    why = None
    if not (stat.S_ISDIR if directory else stat.S_ISREG)(status.st_mode):
        why = "it is no directory" if directory else "it is no regular file"
    elif status.st_uid != os.geteuid():
        why = f"it belongs to the user {status.st_uid}"
    elif status.st_mode & _OTHERS:
        why = "others than its owner may use it"
    if why is None:
        return descriptor
    os.close(descriptor)
    raise StateError(f"{path} is not used: {why}", hint="remove it, or `chmod go=` it", path=path)
