"""What formats share that are only read here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import NoReturn

from ringzero.disk.contract import CheckReport, Disk, DiskInfo, Kind, Repair, Run, Surroundings
from ringzero.disk.storage import Storage
from ringzero.disk.vectors import Views, cut, fill_zeroes, total
from ringzero.errors import DiskReadOnlyError


class ReadOnlyDisk(Disk):
    """A layer that maps the disk by `_runs` and takes no writes.

    `size` and `cluster_size` are in bytes; `dirty`: the last writer did not close the image.
    Raises DiskReadOnlyError when it is opened for writing.
    """

    def __init__(
        self,
        storage: Storage,
        around: Surroundings,
        *,
        size: int,
        cluster_size: int,
        dirty: bool,
    ) -> None:
        if not around.read_only:
            raise DiskReadOnlyError(
                f"{storage.name}: {self.format} images are only read",
                hint="convert it, or put a qcow2 overlay on it "
                "(`ringzero disk create -f qcow2 -b FILE`)",
                path=storage.name,
            )
        self.storage = storage
        self.path = around.path
        self.read_only = True
        self._size = size
        self._cluster_size = cluster_size
        self._dirty = dirty

    @property
    def size(self) -> int:
        return self._size

    @property
    def cluster_size(self) -> int:
        return self._cluster_size

    def info(self) -> DiskInfo:
        return DiskInfo(
            filename=self.storage.name,
            format=self.format,
            virtual_size=self.size,
            actual_size=self.storage.allocated(),
            cluster_size=self.cluster_size,
            backing_filename=self.backing_name,
            backing_format=self.backing_format,
            dirty=self._dirty,
        )

    def check(self, repair: Repair = Repair.NOTHING) -> CheckReport:
        if repair is not Repair.NOTHING:
            raise self._read_only_error()
        return self._check()

    @abstractmethod
    def _check(self) -> CheckReport:
        """Verify the tables."""

    def _read(self, offset: int, views: Views) -> None:
        done = 0
        for run in self._runs(offset, total(views)):
            part = cut(views, done, run.length)
            if run.kind is Kind.DATA:
                assert run.storage is not None
                assert run.host is not None
                run.storage.read_into(run.host, part)
            elif run.kind is Kind.ZERO:
                fill_zeroes(part)
            else:
                self._read_backing(offset + done, part)
            done += run.length

    def _announce(self, offset: int, length: int) -> None:
        for run in self._runs(offset, length):
            if run.host is not None:
                self.storage.announce(run.host, run.length)

    def _write(self, offset: int, views: Views) -> NoReturn:
        raise self._read_only_error()

    def _write_zeroes(self, offset: int, length: int, unmap: bool) -> NoReturn:
        raise self._read_only_error()

    def _discard(self, offset: int, length: int) -> NoReturn:
        raise self._read_only_error()

    def _flush(self) -> None:
        """Nothing is ever written."""

    def _close(self) -> None:
        self.storage.close()


def joined(runs: Iterator[Run]) -> Iterator[Run]:
    """Join neighbours of equal standing whose bytes follow one another."""
    held: Run | None = None
    for run in runs:
        if held is None:
            held = run
        elif held.kind is run.kind and (held.host is None or held.host + held.length == run.host):
            held = held._replace(length=held.length + run.length)
        else:
            yield held
            held = run
    if held is not None:
        yield held
