"""Disks that are made for machines, and kept as long as something names them.

    RINGZERO_DATA_DIR/cloud-init/RANDOM.img     what cloud-init is given (`image.cloudinit`)
    RINGZERO_DATA_DIR/disks/...                 what an image asks for, and what is written on the
                                                disks of an imported machine (`image.datadisks`)

A machine's description names its disks, and so do those of its copies and the manifests of its
snapshots. The one that goes last takes the disk along. What a killed command leaves behind goes
when the next disk is made.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.host.files import atomic_file, make_directory
from ringzero.settings import DATA_DIR

if TYPE_CHECKING:
    from ringzero.config.machine import MachineConfig
    from ringzero.image.cloudinit import Seed
    from ringzero.image.machinespec import DataDisk

# A command has made its machine long before, in seconds.
_ABANDONED = 3600.0


def places() -> tuple[Path, ...]:
    """Return the directories in which they are."""
    return _seeds(), DATA_DIR.get() / "disks"


def _seeds() -> Path:
    return DATA_DIR.get() / "cloud-init"


def keep(seed: Seed, descriptions: Sequence[Path]) -> Path:
    """Write a disk, and return its path; remove abandoned ones, which no description names.

    Raises HostError.
    """
    where = make_directory(_seeds())
    _tidy(where, descriptions)
    path = where / f"{os.urandom(16).hex()}.img"
    with atomic_file(path) as file:
        file.write(seed.image())
    # It may hold passwords.
    path.chmod(0o600)
    return path


def make(disks: Sequence[DataDisk], descriptions: Sequence[Path]) -> list[Path]:
    """Make the disks that an image asks for; return their paths. Abandoned ones go.

    Raises HostError.
    """
    from ringzero.image import datadisks

    _tidy(datadisks.directory(), descriptions)
    return datadisks.make(disks)


def overlays(disks: Sequence[Path], descriptions: Sequence[Path]) -> list[Path]:
    """Make what a machine writes to on the disks of an imported one. Abandoned ones go.

    Raises DiskError, HostError.
    """
    from ringzero.image import datadisks

    _tidy(datadisks.directory(), descriptions)
    return datadisks.overlays(disks)


def of(config: MachineConfig) -> list[Path]:
    """Return the disks of a machine that were made for it."""
    return [disk.path for disk in config.disks if disk.path.parent in places()]


def in_tree(tree: Mapping[str, Any]) -> list[Path]:
    """Return the same of a description as plain data (`config_to_tree`)."""
    paths = (Path(str(device.get("path", ""))) for device in tree.get("devices", ()))
    return [path for path in paths if path.parent in places()]


def _tidy(where: Path, descriptions: Sequence[Path]) -> None:
    """Remove abandoned disks, which no description names."""
    old = time.time() - _ABANDONED
    with contextlib.suppress(OSError):
        release([p for p in where.iterdir() if p.stat().st_mtime < old], descriptions)


def release(paths: Sequence[Path], descriptions: Iterable[Path]) -> None:
    """Remove those disks that neither a machine's description nor a snapshot's names."""
    if not paths:
        return
    from ringzero.vm.saved.snapshot import MANIFEST
    from ringzero.vm.saved.store import Store

    manifests = Store().root.glob(f"*/{MANIFEST}")
    left = list(paths)
    for file in (*descriptions, *manifests):
        try:
            text = file.read_text("utf-8", "replace")
        except OSError:
            continue
        # Names are random: where one stands, the disk is meant.
        left = [path for path in left if path.name not in text]
    for path in left:
        with contextlib.suppress(OSError):
            path.unlink()
