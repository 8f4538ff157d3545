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
_TOP = "/rootfs"
_PIECE = 1 << 20


class Files:
    """The tree of an image; paths begin with "/", its own root."""

    def __init__(self, system: FileSystem) -> None:
        self._system = system

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Yield (path, node) of everything below the root, parents first."""
        for path, node in self._system.walk(_TOP):
            yield path.removeprefix(_TOP), node

    def below(self, path: str) -> Iterator[tuple[str, Node]]:
        """Yield (path, node) of everything below a directory; nothing where there is none."""
        with contextlib.suppress(NotFoundError):
            for found, node in self._system.walk(_TOP + path):
                yield found.removeprefix(_TOP), node

    def content(self, node: Node) -> Iterator[bytes]:
        """Yield the bytes of a file or link. Raises FileSystemError."""
        for offset in range(0, node.size, _PIECE):
            yield self._system.content(node, offset, min(_PIECE, node.size - offset))

    def read(self, path: str, limit: int) -> bytes:
        """Return a file of at most `limit` bytes; b"" where there is none.

        Raises FileSystemError for a longer one.
        """
        with contextlib.suppress(NotFoundError):
            return self._system.read_file(_TOP + path, limit=limit)
        return b""

    def listing(self, path: str) -> list[str]:
        """Return the names in a directory, sorted; none where there is none."""
        with contextlib.suppress(NotFoundError):
            return self._system.listing(_TOP + path)
        return []


@contextlib.contextmanager
def open_files(image: StoredImage) -> Iterator[Files]:
    """Open an image's files. Raises GuestImageError, HostError."""
    with open_root(image.root) as system:
        yield Files(system)


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
