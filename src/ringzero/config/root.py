"""A folder of the host as the guest's root: `--root DIR[:rw]`, `Machine(root=...)`.

Its own first process may run it: `--init PATH`, `Machine(root=..., init=...)`.
"""

from __future__ import annotations

import os
from pathlib import Path

from ringzero.errors import InvalidValueError, MissingFileError
from ringzero.records import record


@record
class HostRoot:
    """A folder, whether the guest's writes go into it, and the first process that runs it.

    `init` is a path in the folder; "" for ringzero's own.
    """

    folder: Path
    writable: bool = False
    init: str = ""

    @property
    def whole(self) -> bool:
        """Whether it is the host's root."""
        return self.folder == Path("/")


def parse(text: str, init: str | None = None) -> HostRoot:
    """Return what DIR or DIR:rw names. Raises InvalidValueError, MissingFileError."""
    path, writable = text, False
    if not Path(text).exists():
        path, _, option = text.rpartition(":")
        if option not in ("rw", "ro") or not path:
            raise MissingFileError(f"root: {text} does not exist", hint="check the path")
        writable = option == "rw"
    folder = Path(path).resolve()
    if not folder.exists():
        raise MissingFileError(f"root: {path} does not exist", hint="check the path")
    if not folder.is_dir():
        raise InvalidValueError(
            f"root: {path} is no folder", hint=f"is it a disk image? --disk {path}"
        )
    return HostRoot(folder, writable, _init(folder, init) if init is not None else "")


def _init(folder: Path, path: str) -> str:
    # It stands in the kernel's command line.
    if not path.startswith("/") or len(path.split()) != 1 or not path.isascii():
        raise InvalidValueError(
            f"init: {path!r} is no path of a program in the root",
            hint="it begins with '/' and has no spaces: --init /sbin/init",
        )
    if not os.path.lexists(f"{folder}{path}"):
        raise MissingFileError(
            f"init: {folder} has no {path}", hint="the path is one inside the root's folder"
        )
    return path
