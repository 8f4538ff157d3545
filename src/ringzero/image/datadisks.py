"""The disks that are made for each machine of an image.

RINGZERO_DATA_DIR/disks/RANDOM.img          one that it asks for (`machinespec.DataDisk`): a raw
                                            disk, sparse, with an empty file system
RINGZERO_DATA_DIR/disks/HEX-RANDOM.qcow2    what the machine writes on a disk of the imported one
                                            whose directory in the store is called HEX
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from ringzero.host.files import atomic_file, make_directory
from ringzero.image.ext4 import writer
from ringzero.image.layers.tree import Node
from ringzero.image.machinespec import DataDisk
from ringzero.settings import DATA_DIR


def directory() -> Path:
    """Return where they are."""
    return DATA_DIR.get() / "disks"


def make(disks: Sequence[DataDisk]) -> list[Path]:
    """Make new disks, and return where they are. Raises HostError."""
    where, found = directory(), list[Path]()
    make_directory(where)
    try:
        for disk in disks:
            path = where / f"{os.urandom(16).hex()}.img"
            with atomic_file(path) as file:
                file.truncate(disk.size)
                top = Node(stat.S_IFDIR | 0o755)
                uuid = os.urandom(16)
                writer.write(
                    *(top, disk.size, file), at=0, uuid=uuid, label="", content=lambda _: ()
                )
            # What a machine writes is its user's own.
            path.chmod(0o600)
            found.append(path)
    except BaseException:
        for path in found:
            path.unlink(missing_ok=True)
        raise
    return found


def overlays(disks: Sequence[Path]) -> list[Path]:
    """Make what a new machine of an imported one writes to, one for each disk of the image.

    Raises DiskError, HostError.
    """
    from ringzero.disk.opening import create_disk

    make_directory(directory())
    found = list[Path]()
    try:
        for disk in disks:
            path = Path(f"{begin_of_overlays(disk.parent)}{os.urandom(16).hex()}.qcow2")
            found.append(path)
            create_disk(path, "qcow2", backing=disk, backing_format="qcow2")
            path.chmod(0o600)
    except BaseException:
        for path in found:
            path.unlink(missing_ok=True)
        raise
    return found


def begin_of_overlays(place: Path) -> str:
    """Return how the paths of all overlays begin that stand on the image whose directory it is."""
    return str(directory() / f"{place.name}-")
