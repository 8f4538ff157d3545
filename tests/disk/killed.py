"""Kill a writing process at a random moment, lose what it had not flushed, and look at the image.

    python -m tests.disk.killed FLAVOUR ROUNDS SEED

Each round forks. The child works on an image in memory and notes every change
to the storage, and every promise to its user, in a journal on the host. It is
killed with SIGKILL. The journal is then played into a storage that keeps,
drops and tears what was not flushed, sector by sector, and what is left is
opened, checked, read, and worked with.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import struct
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from ringzero.disk.contract import SECTOR, Disk, Options, Surroundings
from ringzero.disk.registry import FORMATS
from ringzero.disk.storage import Storage
from ringzero.disk.vectors import as_views, fill
from ringzero.errors import DiskUnsupportedError
from tests.disk.lossy import LossyStorage

SIZE = 4 << 20
SECTORS = SIZE // SECTOR
THREADS = 2
# The longest life of a child, in seconds: some thousands of changes.
LIFE = 0.06

# kind, file or thread, two numbers; for a write, the second is the length of what follows.
_RECORD = struct.Struct("<cBQQ")


@dataclass(frozen=True)
class Flavour:
    """A format, its options, and what lies below it (None: nothing)."""

    format: str
    options: dict = field(default_factory=dict)
    backing: str | None = None

    def __str__(self):
        shown = "".join(f",{name}={value}" for name, value in self.options.items())
        return f"{self.format}{shown}{',over=' + self.backing if self.backing else ''}"


FLAVOURS = [
    Flavour("raw"),
    Flavour("qcow2"),
    Flavour("qcow2", {"cluster_size": "512"}),
    Flavour("qcow2", {"cluster_size": "4K", "compat": "0.10"}),
    Flavour("qcow2", {"cluster_size": "16K", "extended_l2": "on", "compression_type": "zstd"}),
    Flavour("qcow2", {"cluster_size": "4K", "refcount_bits": "64", "data_file": "data"}),
    Flavour("qcow2", {"cluster_size": "4K"}, "raw"),
    Flavour("vmdk"),
    Flavour("vmdk", {"zeroed_grain": "on"}, "vmdk"),
    Flavour("vmdk", {"subformat": "twoGbMaxExtentSparse"}),
    Flavour("vmdk", {"subformat": "monolithicFlat"}),
    Flavour("vdi"),
    Flavour("vdi", {"static": "on"}),
    Flavour("vdi", {}, "vdi"),
    Flavour("vhd", {"block_size": "512K"}),
    Flavour("vhd", {"block_size": "512K"}, "vhd"),
    Flavour("vhd", {"subformat": "fixed"}),
    Flavour("vhdx", {"block_size": "1M"}),
    Flavour("vhdx", {"block_size": "1M"}, "vhdx"),
    Flavour("vhdx", {"subformat": "fixed", "block_size": "1M"}),
]


class Recorder(Storage):
    """Bytes in memory; every change is in the journal before it is made."""

    def __init__(self, content: bytes, number: int, journal: int, discarded: bytes) -> None:
        # What discarded bytes become: a mapped format must never show them.
        self.discarded = discarded
        self.name = f"file {number}"
        self.read_only = False
        self.now = bytearray(content)
        self.number = number
        self.journal = journal
        self._lock = threading.Lock()

    def _note(self, kind: bytes, first: int, data: bytes = b"", second: int = 0) -> None:
        head = _RECORD.pack(kind, self.number, first, len(data) or second)
        os.write(self.journal, head + data)

    @property
    def size(self):
        return len(self.now)

    def read_into(self, offset, views):
        length = sum(map(len, views))
        fill(views, bytes(self.now[offset : offset + length]).ljust(length, b"\0"))

    def write(self, offset, buffers):
        data = b"".join(as_views(buffers))
        with self._lock:
            self._note(b"w", offset, data)
            if offset > len(self.now):
                self.now.extend(bytes(offset - len(self.now)))
            self.now[offset : offset + len(data)] = data

    def flush(self):
        # Noted behind everything that was written when it began.
        with self._lock:
            self._note(b"f", 0)

    def truncate(self, size):
        with self._lock:
            self._note(b"t", size)
            if size > len(self.now):
                self.now.extend(bytes(size - len(self.now)))
            else:
                del self.now[size:]

    def discard(self, offset, length):
        self.write(offset, [self.discarded * length])

    def extents(self, offset, length):
        yield length, any(self.now[offset : offset + length])

    def close(self):
        pass


class Place(Surroundings):
    """A directory in memory. `below` are files of the image under this one."""

    def __init__(self, kind, files, below, *, read_only=False):
        self.path = Path("disk")
        self.read_only = read_only
        self.options = Options(FORMATS.get(kind).open_options, {}, kind)
        self.files = files
        self.below = below

    def open_backing(self, name, format):
        return self.look_at(name, format)

    def open_parent(self, names, format, is_it, *, given=None):
        parent = self.look_at(names[0], format)
        assert is_it(parent)
        return parent

    def look_at(self, name, format):
        return open_in(self.below, format, {}, read_only=True)

    def open_storage(self, name):
        return self.files[name]

    def create_storage(self, name):
        return self.files.setdefault(name, LossyStorage())


def open_in(files, kind, below, **more) -> Disk:
    return FORMATS.get(kind).open(files["disk"], Place(kind, files, below, **more))


def make(flavour: Flavour) -> tuple[dict[str, bytes], dict[str, LossyStorage]]:
    """Return the files of a new image, and those of the one below it."""
    below: dict[str, LossyStorage] = {}
    if flavour.backing:
        below["disk"] = LossyStorage()
        _create(below, flavour.backing, {}, {}, None)
        disk = open_in(below, flavour.backing, {})
        for sector in range(0, SECTORS, 3):
            disk.write(sector * SECTOR, stamped((1 << 30) + sector))
        disk.flush()
        disk.close()
    files: dict[str, LossyStorage] = {"disk": LossyStorage()}
    under = ("disk", flavour.backing) if flavour.backing else None
    _create(files, flavour.format, flavour.options, below, under)
    return {name: bytes(file.now) for name, file in files.items()}, below


def _create(files, kind, options, below, under):
    given = Options(FORMATS.get(kind).create_options, options, kind)
    FORMATS.get(kind).create(files["disk"], SIZE, given, Place(kind, files, below), under)


def stamped(stamp: int) -> bytes:
    return stamp.to_bytes(4, "little") * (SECTOR // 4)


# ---- the child ---------------------------------------------------------------------


def work(disk: Disk, note, number: int, seed: int) -> None:
    """Change a part of the disk for ever."""
    dice = random.Random(seed)
    low = SECTORS // THREADS * number
    stamp = number << 24
    taken: list[str] = []
    while True:
        action = dice.choices(
            ["write", "zero", "discard", "flush", "compress", "take", "drop"],
            [10, 2, 2, 3, 2, 0.1, 0.1],
        )[0]
        first = dice.randrange(SECTORS // THREADS)
        count = min(dice.choice([1, 1, 3, 8, 40, 300]), SECTORS // THREADS - first)
        first += low
        stamp += 1
        if action == "write":
            note(b"c", number, first, count << 32 | stamp)
            disk.write(first * SECTOR, stamped(stamp) * count)
        elif action == "zero":
            note(b"c", number, first, count << 32)
            disk.write_zeroes(first * SECTOR, count * SECTOR)
        elif action == "discard":
            note(b"d", number, first, count << 32)
            disk.discard(first * SECTOR, count * SECTOR)
            for sector in range(first, first + count):
                seen = int.from_bytes(disk.read(sector * SECTOR, 4), "little")
                note(b"s", number, sector, 1 << 32 | seen)
        elif action == "flush":
            disk.flush()
            note(b"p", number, 0, 0)
        elif action == "compress" and disk.compression is not None:
            unit = disk.compression.unit
            first = first * SECTOR // unit * unit // SECTOR
            count = min(unit // SECTOR, SECTORS - first)
            packed = disk.compression.pack(stamped(stamp) * count)
            if packed is not None and first >= low and first + count <= low + SECTORS // THREADS:
                note(b"c", number, first, count << 32 | stamp)
                disk.compression.store(first * SECTOR, packed)
        elif (
            action == "take"
            and disk.snapshots is not None
            and not disk.info().specific.get("data-file")
        ):
            taken.append(f"s{stamp}")
            disk.snapshots.create(taken[-1])
        elif action == "drop" and taken:
            disk.snapshots.delete(taken.pop(dice.randrange(len(taken))))


def child(flavour: Flavour, content, below, journal: int, ready: int, seed: int) -> None:
    files = {
        name: Recorder(data, number, journal, b"\0" if flavour.format == "raw" else b"\xdb")
        for number, (name, data) in enumerate(content.items())
    }
    disk = open_in(files, flavour.format, below)
    # Appending one record is atomic to the other threads.
    note = lambda *record: os.write(journal, _RECORD.pack(*record))  # noqa: E731
    os.write(ready, b"r")

    def run(number: int) -> None:
        try:
            work(disk, note, number, seed + number)
        except BaseException as fault:
            os.write(2, f"{flavour} seed {seed}: {fault!r}\n".encode())
            os._exit(1)

    for number in range(1, THREADS):
        threading.Thread(target=run, args=(number,), daemon=True).start()
    run(0)


# ---- what is left ------------------------------------------------------------------


class Truth:
    """What each sector may hold."""

    def __init__(self, disk: Disk) -> None:
        self.flushed = stamps(disk)
        self.current = list(self.flushed)
        self.since: list[set[int]] = [set() for _ in self.flushed]

    def take(self, kind: bytes, number: int, first: int, second: int) -> None:
        count, stamp = second >> 32, second & 0xFFFF_FFFF
        if kind == b"p":
            share = SECTORS // THREADS
            for sector in range(share * number, share * (number + 1)):
                self.flushed[sector] = self.current[sector]
                self.since[sector].clear()
            return
        for sector in range(first, first + count):
            self.since[sector].add(stamp)
            if kind != b"d":
                self.current[sector] = stamp

    def verify(self, disk: Disk) -> None:
        for sector, seen in enumerate(stamps(disk)):
            allowed = {self.flushed[sector], *self.since[sector]}
            assert seen in allowed, (sector, hex(seen), {hex(stamp) for stamp in allowed})


def stamps(disk: Disk) -> list[int]:
    """Return the stamp of each sector, which must be the same in all of it."""
    data = disk.read(0, SIZE)
    found = []
    for at in range(0, SIZE, SECTOR):
        stamp = int.from_bytes(data[at : at + 4], "little")
        assert data[at : at + SECTOR] == stamped(stamp), (at // SECTOR, "is torn")
        found.append(stamp)
    return found


def play(journal: bytes, files: list[LossyStorage], truth: Truth) -> int:
    """Do again what the journal says; return the number of changes."""
    at = changes = 0
    while at + _RECORD.size <= len(journal):
        kind, number, first, second = _RECORD.unpack_from(journal, at)
        at += _RECORD.size
        if kind == b"w":
            data = journal[at : at + second]
            if len(data) < second:
                # Killed in the middle of it.
                break
            at += second
            files[number].write(first, [data])
            changes += 1
        elif kind == b"t":
            files[number].truncate(first)
            changes += 1
        elif kind == b"f":
            files[number].flush()
        else:
            truth.take(kind, number, first, second)
    return changes


def one_round(flavour: Flavour, content, below, seed: int) -> int:
    dice = random.Random(seed)
    with tempfile.TemporaryFile(dir=_fast_directory()) as file:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                child(flavour, content, below, file.fileno(), write_end, seed)
            os._exit(1)
        os.close(write_end)
        os.read(read_end, 1)
        os.close(read_end)
        time.sleep(dice.uniform(0, LIFE))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the child ended by itself"
        file.seek(0)
        journal = file.read()
    files = {name: LossyStorage(data) for name, data in content.items()}
    fresh = {name: LossyStorage(data) for name, data in content.items()}
    truth = Truth(open_in(fresh, flavour.format, below, read_only=True))
    changes = play(journal, list(files.values()), truth)
    left = {name: LossyStorage(file.after_crash(dice)) for name, file in files.items()}
    disk = open_in(left, flavour.format, below)
    with contextlib.suppress(DiskUnsupportedError):
        report = disk.check()
        assert report.errors == 0, report.messages
    truth.verify(disk)
    # It goes on working.
    expected = bytearray(disk.read(0, SIZE))
    for number in range(10):
        at = dice.randrange(SECTORS - 64) * SECTOR
        piece = stamped((1 << 29) + number) * dice.choice([1, 8, 64])
        expected[at : at + len(piece)] = piece
        disk.write(at, piece)
    disk.flush()
    disk.close()
    again = open_in(left, flavour.format, below, read_only=True)
    assert again.read(0, SIZE) == expected
    return changes


def _fast_directory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main() -> None:
    wanted, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    flavour = next(flavour for flavour in FLAVOURS if str(flavour) == wanted)
    content, below = make(flavour)
    began = time.monotonic()
    changes = 0
    for number in range(seed, seed + rounds):
        try:
            changes += one_round(flavour, content, below, number)
        except BaseException as fault:
            fault.add_note(f"{flavour}, seed {number}")
            raise
    seconds = round(time.monotonic() - began, 1)
    row = {"flavour": wanted, "killed": rounds, "changes": changes, "seconds": seconds}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
