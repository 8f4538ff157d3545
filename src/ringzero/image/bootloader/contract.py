"""What a boot loader's configuration is read from, and what comes of it.

A reader of one loader's files takes `Volumes` and returns `BootEntry` records; it opens nothing
else, and what it reads was written by the guest: loops and lengths have bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ringzero.errors import FileSystemError, NotFoundError
from ringzero.image.fs.contract import FileSystem
from ringzero.image.partitions import Partition
from ringzero.records import record
from ringzero.units import MIB

# Of a configuration file, in bytes: those of ten kernels have 20 KiB.
_MAX_CONFIGURATION = 1 * MIB


@record
class Volume:
    """One file system of the disk, and the partition that it fills (None: the whole disk)."""

    partition: Partition | None
    files: FileSystem

    @property
    def name(self) -> str:
        return self.files.source.name


@record
class FileAt:
    """A file of one volume: `name` is a path, or the section of the program at `path`."""

    volume: Volume
    path: str
    section: str = ""

    def __str__(self) -> str:
        return f"{self.path}{':' + self.section if self.section else ''} in {self.volume.name}"


@record
class BootEntry:
    """One thing to boot. `id` is what its loader calls it, `title` what people see.

    `default` is true for the one that the loader would take; `loader` names the configuration.
    """

    id: str
    title: str
    kernel: FileAt
    initrds: tuple[FileAt, ...]
    command_line: str
    loader: str
    default: bool = False


class Volumes:
    """The file systems of a disk: `root` is the one that the system calls /."""

    def __init__(self, all_: Sequence[Volume], root: Volume | None) -> None:
        self.all = tuple(all_)
        self.root = root

    def __iter__(self) -> Iterator[Volume]:
        """Yield all, the root first."""
        if self.root is not None:
            yield self.root
        yield from (volume for volume in self.all if volume is not self.root)

    def by_uuid(self, uuid: str) -> Volume | None:
        return next((v for v in self.all if v.files.uuid.lower() == uuid.lower()), None)

    def by_label(self, label: str) -> Volume | None:
        return next((v for v in self.all if v.files.label == label), None)

    def by_number(self, number: int) -> Volume | None:
        return next((v for v in self.all if v.partition and v.partition.number == number), None)

    def with_file(self, path: str) -> Volume | None:
        return next((v for v in self if exists(v, path)), None)


def exists(volume: Volume, path: str) -> bool:
    """Tell whether a volume has a file; a damaged place has none."""
    try:
        return volume.files.exists(path)
    except FileSystemError:
        return False


def read_text(volume: Volume, path: str) -> str:
    """Return a configuration file. Raises NotFoundError, FileSystemError."""
    data = volume.files.read_file(path, limit=_MAX_CONFIGURATION)
    return data.decode("utf-8", "replace")


def listing(volume: Volume, path: str) -> list[str]:
    """Return what is in a directory; nothing where there is none."""
    try:
        return volume.files.listing(path)
    except (NotFoundError, FileSystemError):
        return []
