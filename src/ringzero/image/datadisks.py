"""The disks that an image asks for (`machinespec.DataDisk`): made empty for each machine.

RINGZERO_DATA_DIR/disks/RANDOM.img      a raw disk, sparse, with an empty file system
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
