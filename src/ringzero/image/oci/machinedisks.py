"""The disks of an imported machine in the store: images/<digest>/disk-N.qcow2.

Each is another name of its blob, and nobody writes to it: machines have overlays
(`ringzero.image.datadisks`). It may come from anybody, and has to be a whole qcow2 image: one that
names another file, as its backing file or for its data, would show a guest the host's files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ringzero.disk.opening import open_disk
from ringzero.errors import GuestImageError, RingzeroError
from ringzero.host.files import host_error
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.manifest import Descriptor

FORMAT = "qcow2"


def place(layers: Sequence[Descriptor], blobs: Blobs, work: Path) -> tuple[list[str], int]:
    """Give an image's disks, which are in the store, names in its directory `work`.

    Returns the names, and the bytes that they take. Raises GuestImageError, HostError.
    """
    names = []
    for number, layer in enumerate(layers, 1):
        path = work / f"disk-{number}.{FORMAT}"
        try:
            path.hardlink_to(blobs.path(layer.digest))
        except OSError as fault:
            raise host_error(fault, "write", path) from fault
        check(path)
        names.append(path.name)
    return names, sum(layer.size for layer in layers)


def check(path: Path) -> None:
    """Raise GuestImageError for what is no qcow2 image, or stands on another file."""
    try:
        with open_disk(path, FORMAT, read_only=True, backing=False) as disk:
            alone = disk.backing_name is None and not disk.info().specific.get("data-file")
    except RingzeroError as fault:
        raise GuestImageError(
            f"a disk of the image is damaged: {fault.message}", hint="import or push it again"
        ) from fault
    if not alone:
        raise GuestImageError(
            "a disk of the image names another file, and has to be whole",
            hint="`ringzero image import` makes whole ones",
        )
