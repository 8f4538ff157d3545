"""Every way to make a writable image. A format joins the contract suite with lines here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ringzero.disk import FORMATS, Disk, create_disk, open_disk


@dataclass(frozen=True)
class Flavour:
    """One format with one set of creation options."""

    format: str
    options: dict = field(default_factory=dict)

    def __str__(self) -> str:
        shown = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.format}({shown})" if shown else self.format

    @property
    def takes_backing(self) -> bool:
        # VHDX and VHD have parents of their own kind only; see their own tests.
        able = FORMATS.get(self.format).can_have_backing and self.format == "qcow2"
        return able and not {"preallocation", "data_file_raw"} & set(self.options)

    @property
    def blank(self) -> bool:
        """Whether a new image has no data allocated."""
        fixed = self.options.get("subformat") in ("fixed", "monolithicFlat", "twoGbMaxExtentFlat")
        return not fixed and not {"preallocation", "data_file_raw", "static"} & set(self.options)

    def create(self, path: Path, size: int, **more) -> None:
        create_disk(path, self.format, size, options=self.options, **more)

    def open(self, path: Path, **more) -> Disk:
        return open_disk(path, self.format, **more)


FLAVOURS = [
    Flavour("raw"),
    Flavour("raw", {"preallocation": "falloc"}),
    Flavour("qcow2"),
    Flavour("qcow2", {"compat": "0.10"}),
    Flavour("qcow2", {"cluster_size": "512"}),
    Flavour("qcow2", {"cluster_size": "2M", "refcount_bits": "64"}),
    Flavour("qcow2", {"cluster_size": "1K", "refcount_bits": "1"}),
    Flavour("qcow2", {"extended_l2": "on", "compression_type": "zstd"}),
    Flavour("qcow2", {"preallocation": "metadata"}),
    Flavour("qcow2", {"data_file": "data"}),
    Flavour("qcow2", {"data_file": "data", "data_file_raw": "on"}),
    Flavour("vmdk"),
    Flavour("vmdk", {"zeroed_grain": "on"}),
    Flavour("vmdk", {"subformat": "monolithicFlat"}),
    Flavour("vmdk", {"subformat": "twoGbMaxExtentSparse"}),
    Flavour("vmdk", {"subformat": "twoGbMaxExtentFlat"}),
    Flavour("vdi"),
    Flavour("vdi", {"static": "on"}),
    Flavour("vhd"),
    Flavour("vhd", {"subformat": "fixed"}),
    Flavour("vhdx"),
    Flavour("vhdx", {"block_size": "1M"}),
    Flavour("vhdx", {"subformat": "fixed"}),
]
# What is only read, or recognised to be refused.
NOT_MADE = {"luks", "ova", "parallels", "qed"}
FLAVOURS += [
    Flavour(name)
    for name in FORMATS.names()
    if name not in NOT_MADE and name not in {flavour.format for flavour in FLAVOURS}
]
