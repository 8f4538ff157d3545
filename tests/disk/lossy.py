"""A storage that loses power: it keeps, drops and tears what was not flushed, sector by sector."""

from __future__ import annotations

import os
import random
from pathlib import Path

from ringzero.disk.contract import SECTOR, Disk, Options, Surroundings
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import Storage
from ringzero.disk.vectors import as_views, fill
from ringzero.errors import DiskError

# `make fuzz` sets it: how many times more rounds than the quick run.
ROUNDS = int(os.environ.get("RINGZERO_FUZZ", "1"))


class PowerLostError(Exception):
    """The storage has stopped for good."""


class LossyStorage(Storage):
    """Bytes in memory. After `operations_left` changes every call raises PowerLostError."""

    # A write this far behind the end finds no room, as on a small host disk: a
    # broken refcount block can lead there, within what one block counts.
    ROOM = 256 << 20
    # A write this far behind the end is a fault of the format's code.
    FARTHEST = 1 << 42

    def __init__(self, content: bytes = b"", operations_left: int = 1 << 60) -> None:
        self.name = "lossy"
        self.read_only = False
        self.durable = bytearray(content)
        self.now = bytearray(content)
        # For each sector that has changed since the last flush: all it has been.
        self.versions: dict[int, list[bytes]] = {}
        self.operations_left = operations_left
        # What discarded bytes become: a mapped format must never show them.
        self.discarded = b"\xdb"

    def _count(self) -> None:
        if self.operations_left <= 0:
            raise PowerLostError
        self.operations_left -= 1

    @property
    def size(self) -> int:
        return len(self.now)

    def read_into(self, offset, views):
        length = sum(map(len, views))
        fill(views, bytes(self.now[offset : offset + length]).ljust(length, b"\0"))

    def write(self, offset, buffers):
        self._count()
        data = b"".join(as_views(buffers))
        self._reach(offset)
        if offset > len(self.now):
            self.now.extend(bytes(offset - len(self.now)))
        self.now[offset : offset + len(data)] = data
        self._note(offset, len(data))

    def _reach(self, size):
        assert size - len(self.now) < self.FARTHEST, "the file would become huge"
        if size - len(self.now) > self.ROOM:
            raise DiskError("no space left")

    def _note(self, offset, length):
        for sector in range(offset // SECTOR, -(-(offset + length) // SECTOR)):
            at = sector * SECTOR
            self.versions.setdefault(sector, []).append(bytes(self.now[at : at + SECTOR]))

    def flush(self):
        self._count()
        self.durable[:] = self.now
        self.versions.clear()

    def truncate(self, size):
        self._count()
        old = len(self.now)
        self._reach(size)
        if size > old:
            self.now.extend(bytes(size - old))
        else:
            del self.now[size:]
            self._note(size, old - size)

    def discard(self, offset, length):
        self.write(offset, [self.discarded * length])

    def extents(self, offset, length):
        # What is zero is a hole, as after punching on a host.
        for start in range(offset, offset + length, 4096):
            count = min(4096, offset + length - start)
            yield count, any(self.now[start : start + count])

    def close(self):
        pass

    def after_crash(self, dice: random.Random) -> bytes:
        """Return what is found at the next start."""
        mood = dice.choice(["all", "none", "mixed", "mixed", "mixed"])
        if mood == "all":
            return bytes(self.now)
        found = bytearray(self.durable)
        if mood == "none":
            return bytes(found)
        for sector, versions in self.versions.items():
            at = sector * SECTOR
            old = bytes(self.durable[at : at + SECTOR])
            chosen = dice.choice([old, *versions, versions[-1]])
            if not chosen:
                continue
            if at + len(chosen) > len(found):
                found.extend(bytes(at + len(chosen) - len(found)))
            found[at : at + len(chosen)] = chosen
        return bytes(found)


class Bare(Surroundings):
    """Surroundings without other files."""

    def __init__(self, format_name: str, *, read_only: bool = False, options=None) -> None:
        self.path = Path("lossy")
        self.read_only = read_only
        kind = FORMATS.get(format_name)
        self.options = Options(kind.open_options, options or {}, format_name)

    def open_backing(self, name, format):
        return None

    def open_storage(self, name):
        raise NotImplementedError

    def create_storage(self, name):
        raise NotImplementedError


def create_in(storage: Storage, format_name: str, size: int, options: dict) -> None:
    kind = FORMATS.get(format_name)
    kind.create(
        storage, size, Options(kind.create_options, options, format_name), Bare(format_name)
    )
    storage.flush()


def open_in(storage: Storage, format_name: str, **more) -> Disk:
    return FORMATS.get(format_name).open(storage, Bare(format_name, **more))
