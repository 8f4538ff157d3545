"""The files of an image in the store, read without a machine.

with open_files(image) as files:
    for path, node in files.walk(): ...
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ringzero.errors import GuestImageError, NotFoundError
from ringzero.image.fs.contract import FileSystem, Node, open_file_system
from ringzero.image.oci.store import StoredImage
from ringzero.image.source import Part

# Where an image's own root is in its root file system's image (`root`).
TOP = "/rootfs"
_PIECE = 1 << 20


class Files:
    """The tree of an image; paths begin with "/", its own root."""

    def __init__(self, system: FileSystem, top: str = TOP) -> None:
        """`top` is where the tree is in a file system; "" for all of it."""
        self._system, self._top = system, top

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Yield (path, node) of everything below the root, parents first."""
        for path, node in self._system.walk(self._top or "/"):
            yield path.removeprefix(self._top), node

    def below(self, path: str) -> Iterator[tuple[str, Node]]:
        """Yield (path, node) of everything below a directory; nothing where there is none."""
        with contextlib.suppress(NotFoundError):
            for found, node in self._system.walk(self._top + path):
                yield found.removeprefix(self._top), node

    def content(self, node: Node) -> Iterator[bytes]:
        """Yield the bytes of a file or link. Raises FileSystemError."""
        for offset in range(0, node.size, _PIECE):
            yield self._system.content(node, offset, min(_PIECE, node.size - offset))

    def read(self, path: str, limit: int) -> bytes:
        """Return a file of at most `limit` bytes; b"" where there is none.

        Raises FileSystemError for a longer one.
        """
        with contextlib.suppress(NotFoundError):
            return self._system.read_file(self._top + path, limit=limit)
        return b""

    def listing(self, path: str) -> list[str]:
        """Return the names in a directory, sorted; none where there is none."""
        with contextlib.suppress(NotFoundError):
            return self._system.listing(self._top + path)
        return []


@contextlib.contextmanager
def open_files(image: StoredImage) -> Iterator[Files]:
    """Open an image's files, of an imported machine those of its root file system.

    Raises GuestImageError, FileSystemError, HostError.
    """
    if image.disks:
        with open_system(image) as system:
            yield Files(system, "")
        return
    with open_root(image.root) as system:
        yield Files(system)


@contextlib.contextmanager
def open_system(image: StoredImage) -> Iterator[FileSystem]:
    """Open the root file system of an imported machine, as its first disk has it.

    Raises GuestImageError, FileSystemError, DiskError.
    """
    from ringzero.disk import open_disk
    from ringzero.image.bootable import examine

    with open_disk(image.root, "qcow2", read_only=True, backing=False) as disk:
        found = examine(disk)
        if found.volumes.root is None:
            seen = "; ".join(found.notes) or "it has no file system"
            raise GuestImageError(
                f"the files of {image.name} cannot be read: {seen}",
                hint="it can be run, and its disk exported",
            )
        yield found.volumes.root.files


@contextlib.contextmanager
def open_root(path: Path) -> Iterator[FileSystem]:
    """Open the disk with an image's root file system. Raises GuestImageError, HostError."""
    from ringzero.disk import open_disk

    with open_disk(path, "vmdk", read_only=True, lock=False) as disk:
        system = open_file_system(Part(disk, 0, disk.size, str(path)))
        if system is None:
            raise GuestImageError(
                f"{path} is no root file system of an image",
                hint="`ringzero image rm` removes the image; pull or build it again",
            )
        yield system
