"""A copy-on-write layer with no file: for machines whose writes are thrown away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn, Self

from ringzero.disk.contract import Disk, DiskInfo, Kind, Run, Sample, Surroundings
from ringzero.disk.mapped import SPOT_ABSENT, SPOT_ZERO, MappedDisk
from ringzero.disk.storage import MemoryStorage, Storage
from ringzero.units import KIB

# In the map: this cluster reads as zeroes and takes no memory.
_ZERO = -1


class OverlayDisk(MappedDisk):
    """All writes go to anonymous memory and are gone at `close`; reads fall through to `backing`.

    Owns `backing`, which is never written. `storage` is where the clusters
    go; the default is an anonymous memory file.
    """

    format = "overlay"
    can_have_backing = True

    # The size that qcow2 has proved right: copying one costs a few
    # microseconds, and a map of 1 TiB stays bearable.
    cluster_size = 64 * KIB

    def __init__(self, backing: Disk, storage: Storage | None = None) -> None:
        super().__init__(storage or MemoryStorage("ringzero-overlay"))
        self.backing = backing
        self.backing_name = str(backing.path) if backing.path else None
        self.backing_format = backing.format
        self.path = None
        self.read_only = False
        self._size = backing.size
        self._map: dict[int, int] = {}
        self._free: list[int] = []

    @classmethod
    def probe(cls, sample: Sample) -> int:
        return 0

    @classmethod
    def open(cls, storage: Storage, around: Surroundings) -> Self:
        return _no_file()

    @property
    def size(self) -> int:
        return self._size

    def info(self) -> DiskInfo:
        return DiskInfo(
            self.storage.name,
            self.format,
            self.size,
            self.storage.allocated(),
            self.cluster_size,
            self.backing_name,
            self.backing_format,
        )

    def make_empty(self) -> None:
        with self._gate.alone(), self._alloc:
            self._map.clear()
            self._free.clear()
            self.storage.truncate(0)

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        size = self.cluster_size
        end = offset + length
        get = self._map.get
        while offset < end:
            index = offset // size
            entry = get(index)
            stop = index + 1
            limit = -(-end // size)
            expected = entry
            while stop < limit:
                if expected is not None and expected >= 0:
                    expected += size
                if get(stop) != expected:
                    break
                stop += 1
            run = min(stop * size, end) - offset
            if entry is None:
                yield Run(run, Kind.ABSENT)
            elif entry == _ZERO:
                yield Run(run, Kind.ZERO)
            else:
                host = entry + offset - index * size
                yield Run(run, Kind.DATA, host, self.storage, writable=True)
            offset += run

    def _spot(self, offset: int, length: int, writing: bool) -> int | None:
        index, inside = divmod(offset, self.cluster_size)
        if inside + length > self.cluster_size:
            return None
        entry = self._map.get(index)
        if entry is None or entry == _ZERO:
            spot = SPOT_ABSENT if entry is None else SPOT_ZERO
            return None if writing else spot
        return entry + inside

    def _grant(self, index: int, count: int) -> tuple[int, int]:
        if self._free:
            return self._free.pop(), 1
        # A write in parts must not be given other space than a whole one.
        missing = 1
        while missing < count and self._map.get(index + missing, _ZERO) == _ZERO:
            missing += 1
        return -(-self.storage.size // self.cluster_size) * self.cluster_size, missing

    def _link(self, index: int, count: int, host: int) -> None:
        for number in range(count):
            self._map[index + number] = host + number * self.cluster_size

    def _unlink(self, index: int, count: int, kind: Kind) -> None:
        for number in range(index, index + count):
            host = self._map.get(number, _ZERO)
            if host != _ZERO:
                self.storage.discard(host, self.cluster_size)
                self._free.append(host)
            self._map[number] = _ZERO

    def _tables_dirty(self) -> bool:
        return False

    def _write_tables(self) -> None:
        """Nothing outlives the overlay."""

    def _resize(self, size: int) -> None:
        with self._gate.alone(), self._alloc:
            old, self._size = self._size, size
            for index in [n for n in self._map if n * self.cluster_size >= size]:
                del self._map[index]
        self._zero_new(old, size)


def _no_file() -> NoReturn:
    raise NotImplementedError("an overlay has no file; make it with OverlayDisk(disk)")
