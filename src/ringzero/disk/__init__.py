"""Disk images of every format behind one `open_disk()`.

`contract` says what a disk is, `opening` is the door, `formats` holds one
module per format, `mapped` and `tables` what formats share, `storage` the host
bytes below them, `overlay` the layer without a file. See docs/disks.md.

May import: the ground, config, host, core.
"""

from __future__ import annotations

from ringzero.disk.contract import (
    CheckReport,
    Disk,
    DiskInfo,
    Extent,
    Kind,
    Repair,
    Run,
    Snapshot,
)
from ringzero.disk.opening import create_disk, open_as_backing, open_disk
from ringzero.disk.overlay import OverlayDisk
from ringzero.disk.registry import FORMATS

__all__ = [
    "FORMATS",
    "CheckReport",
    "Disk",
    "DiskInfo",
    "Extent",
    "Kind",
    "OverlayDisk",
    "Repair",
    "Run",
    "Snapshot",
    "create_disk",
    "open_as_backing",
    "open_disk",
]
