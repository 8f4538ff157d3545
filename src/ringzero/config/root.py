"""A folder of the host as the guest's root: `--root DIR[:rw]`, `Machine(root=...)`."""

from __future__ import annotations

from pathlib import Path

from ringzero.errors import InvalidValueError, MissingFileError
from ringzero.records import record


@record
class HostRoot:
    """A folder, and whether the guest's writes go into it."""

    folder: Path
    writable: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is the host's root."""
        return self.folder == Path("/")


def parse(text: str) -> HostRoot:
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
    return HostRoot(folder, writable)
