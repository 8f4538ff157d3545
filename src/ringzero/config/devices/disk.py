"""A disk: an image file or a block device of the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from ringzero.config.device import DEVICE_CONFIGS, NAME, DeviceConfig, file_faults
from ringzero.errors import InvalidValueError
from ringzero.records import record
from ringzero.settings import CACHE_DIR


@DEVICE_CONFIGS.register("disk")
@record
class DiskConfig(DeviceConfig):
    """A disk image: `format` None means that the content tells."""

    kind = "disk"
    spelling = "FILE[,ro][,format=NAME]"
    help = (
        "disk image to attach, read-only with ',ro'; raw ones that are written to "
        "need ',format=raw' (repeatable)"
    )

    path: Path
    read_only: bool = False
    format: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        path, read_only, name = text, False, None
        # Options are taken from the end, so that a file name may hold a comma.
        while "," in path:
            head, _, option = path.rpartition(",")
            if option == "ro":
                read_only = True
            elif option.startswith("format=") and option != "format=":
                name = option.removeprefix("format=")
            else:
                break
            path = head
        if not path:
            raise InvalidValueError(
                f"no file in the disk {text!r}", hint="write FILE, FILE,ro or FILE,format=raw"
            )
        return cls(Path(path), read_only, name)

    def faults(self) -> list[str]:
        if self.format is not None and not NAME.fullmatch(self.format):
            return [f"disk {self.path}: no format is called {self.format!r}"]
        return []

    @classmethod
    def faults_together(cls, devices: Sequence[Self]) -> list[str]:
        paths = Counter(disk.path for disk in devices)
        writable = dict.fromkeys(disk.path for disk in devices if not disk.read_only)
        return [
            f"disk {path} is attached twice and written to" for path in writable if paths[path] > 1
        ]

    def stand_in(self, number: int) -> Self | str:
        # What lies there is called by its content, and never written to.
        images = CACHE_DIR.get() / "images"
        if self.read_only and images in self.path.parents:
            return self
        return f"the guest reads a disk that may hold something else by then: disk{number}"

    def file_faults(self) -> list[str]:
        return file_faults("disk", self.path, writable=not self.read_only, device=True)
