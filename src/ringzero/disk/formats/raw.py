"""raw: the bytes of the disk, one after the other; holes in the file are zeroes.

The exemplary format: the whole of the contract in one page. It has no
specification and no signature, so it is never guessed for a writable image
(see `opening`): a guest could otherwise write another format's header into its
first sector and have it believed at the next start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

from ringzero.disk.batch import Checked
from ringzero.disk.contract import (
    SECTOR,
    Disk,
    DiskInfo,
    Kind,
    Option,
    Options,
    Run,
    Sample,
    Surroundings,
)
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import FileStorage, Storage, Window
from ringzero.disk.vectors import Views
from ringzero.errors import DiskFormatError, InvalidValueError


@FORMATS.register("raw")
class RawDisk(Disk):
    """A raw image, or the part of one between the options `offset` and `offset + size`."""

    format = "raw"
    create_options: ClassVar[tuple[Option, ...]] = (
        Option.choice(
            "preallocation", ("off", "falloc", "full"), "off", "reserve the space at once"
        ),
    )
    open_options: ClassVar[tuple[Option, ...]] = (
        Option.size("offset", 0, "where the disk begins in the file, in bytes"),
        Option.size("size", 0, "how long the disk is (0: to the end of the file)"),
    )

    def __init__(self, storage: Storage, around: Surroundings) -> None:
        self.storage = storage
        self.path = around.path
        self.read_only = around.read_only
        # A file may end inside a sector; the guest sees the rest of it as zeroes.
        self._size = -(-storage.size // SECTOR) * SECTOR

    @classmethod
    def probe(cls, sample: Sample) -> int:
        return 1

    @classmethod
    def open(cls, storage: Storage, around: Surroundings) -> Self:
        offset, size = around.options["offset"], around.options["size"]
        if offset < 0 or size < 0 or offset + size > storage.size:
            raise InvalidValueError(
                f"bytes {offset} to {offset + size} are not in a file of {storage.size} bytes",
                hint="check the options offset and size",
            )
        if size % SECTOR:
            raise DiskFormatError("the size must be a multiple of 512")
        if offset or size:
            size = size or storage.size - offset
            storage = Window(storage, offset, size)
        return cls(storage, around)

    @classmethod
    def create(
        cls,
        storage: Storage,
        size: int,
        options: Options,
        around: Surroundings,
        backing: tuple[str, str] | None = None,
    ) -> None:
        storage.reach(size)
        if options["preallocation"] == "full":
            Storage.write_zeroes(storage, 0, size)
        elif options["preallocation"] == "falloc" and isinstance(storage, FileStorage):
            storage.preallocate(0, size)

    @property
    def size(self) -> int:
        return self._size

    def info(self) -> DiskInfo:
        return DiskInfo(str(self.path), self.format, self.size, self.storage.allocated())

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        for run, has_data in self.storage.extents(offset, length):
            kind = Kind.DATA if has_data else Kind.ZERO
            yield Run(run, kind, offset, self.storage, writable=True)
            offset += run

    def _read(self, offset: int, views: Views) -> None:
        self.storage.read_into(offset, views)

    def _read_ready(self, requests: Sequence[Checked]) -> list[Checked]:
        read_cached = self.storage.read_cached
        return [request for request in requests if not read_cached(*request)]

    def _announce(self, offset: int, length: int) -> None:
        self.storage.announce(offset, length)

    def _write(self, offset: int, views: Views) -> None:
        self.storage.write(offset, views)

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.storage.write_zeroes(offset, length, keep_space=not unmap)

    def _discard(self, offset: int, length: int) -> None:
        self.storage.discard(offset, length)

    def _flush(self) -> None:
        self.storage.flush()

    def _resize(self, size: int) -> None:
        self.storage.truncate(size)
        self._size = size

    def _close(self) -> None:
        self.storage.close()
