"""Every way to make a writable image. A format joins the contract suite with lines here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ringzero.disk import Disk, create_disk, open_disk


@dataclass(frozen=True)
class Flavour:
    """One format with one set of creation options."""

    format: str
    options: dict = field(default_factory=dict)

    def __str__(self) -> str:
        shown = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.format}({shown})" if shown else self.format

    def create(self, path: Path, size: int, **more) -> None:
        create_disk(path, self.format, size, options=self.options, **more)

    def open(self, path: Path, **more) -> Disk:
        return open_disk(path, self.format, **more)


FLAVOURS = [
    Flavour("raw"),
    Flavour("raw", {"preallocation": "falloc"}),
]
