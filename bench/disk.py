"""Disks side by side with qemu-img 7.2: a named table of ratios (above 1: ringzero is faster).

    python bench/disk.py                 all rows, about ten minutes
    python bench/disk.py qcow2 chain     rows whose name contains one of the words
    python bench/disk.py --json out.json --compare before.json

Both sides use the same file, the same sizes and the same order of offsets, one
right after the other, and the better of a few rounds counts; of conversions the middle one,
with the ratio of the best ones beside it. "cold" rows drop the file from the page cache first.
"d16" rows have 16 requests in flight: ours are handed over 16 at a time (`read_batch`,
`write_batch`), as a virtqueue is drained. Converting is timed from the start of either command
to its end, and neither waits for the host's disk (`-t unsafe`); warm rows of it are timed in
/dev/shm when there is room.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

from ringzero.disk import create_disk, open_disk
from ringzero.units import GIB, KIB, MIB

# Short turns: on a busy machine one of them is undisturbed.
SIZE = 256 * MIB
CONVERT_SIZE = 4 * GIB
BIG = 2 * MIB
SMALL = 4 * KIB
# Coprime to the number of 4 KiB blocks: visits blocks far apart, none twice.
STRIDE = SMALL * 7919
SMALL_COUNT = 10_000
COLD_COUNT = 2_000
# The machine is shared: the sides take turns, and the best turn of each counts.
ROUNDS = 3
# 256 MiB from memory take some 20 ms, which anything disturbs.
SHORT_ROUNDS = 10
# One turn takes seconds. The peer's cold ones fall in two groups, three times apart, by what
# memory the machine's host has yet to provide; the best of a few would show either.
CONVERT_ROUNDS = 5
# An installed program has its bytecode.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
CHAIN = 10
# The peer's ways to do I/O; the faster one counts.
ENGINES = ("threads", "io_uring")
FORMATS = ("raw", "qcow2", "vmdk", "vhdx", "vdi", "vhd")
# What the peer calls it.
PEER_NAMES = {"vhd": "vpc"}

# (name, bytes of a request, whether it writes, how many at a time, cold)
LOADS = [
    (
        f"{size_name} {'write' if writing else 'read'} d{depth} {'cold' if cold else 'warm'}",
        size,
        writing,
        depth,
        cold,
    )
    for size_name, size in (("sequential", BIG), ("4k random", SMALL))
    for writing in (False, True)
    for depth in (1, 16)
    for cold in (False, True)
]

# Warm conversions are timed in memory when there is room for source and target, so that
# they do not depend on how busy the host's disk is.
MEMORY = Path("/dev/shm")
MEMORY_ROOM = 2 * CONVERT_SIZE

# Scattered data: bytes of a piece, how many, and of the disk. Such are the disks of guests
# that have lived for a while, and of file systems that spread what they hold.
SCATTERS = [(MIB, 510, 2 * GIB), (64 * KIB, 4000, 4 * GIB), (4 * KIB, 8000, 4 * GIB)]

# Every pair of the four, and the way in and out for the others.
PAIRS = [
    *((a, b, False) for a in FORMATS[:4] for b in FORMATS[:4] if a != b),
    *((a, b, False) for c in FORMATS[4:] for a, b in (("raw", c), (c, "raw"))),
    ("raw", "qcow2", True),
]


@dataclass
class Row:
    """One measurement: work done per second, by each side."""

    name: str
    unit: str
    ours: float
    peer: float
    # The ratio of the best turns, where `ours` and `peer` are those in the middle.
    best: float | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.peer


def fill(path: Path, format_name: str) -> None:
    create_disk(path, format_name, SIZE, overwrite=True)
    block = os.urandom(BIG)
    with open_disk(path, format_name, sync=False) as disk:
        for at in range(0, SIZE, BIG):
            disk.write(at, block)


def drop_cache(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def offsets(size: int, count: int) -> Iterator[int]:
    at = 0
    for _ in range(count):
        yield at
        at = (at + (size if size == BIG else STRIDE)) % SIZE


def pages(size: int) -> memoryview:
    """Return a buffer that begins on a page and has been written to, as the peer's."""
    found = memoryview(mmap.mmap(-1, size))
    found[:] = b"\1" * size
    return found


def ours(
    path: Path, format_name: str, *, size: int, count: int, writing: bool, depth: int
) -> float:
    """Return the seconds for `count` requests of `size` bytes through the contract."""
    with open_disk(path, format_name, read_only=not writing, sync=False) as disk:
        if depth == 1:
            call = disk.write if writing else disk.read_into
            buffer = pages(size)
            begun = time.perf_counter()
            for at in offsets(size, count):
                call(at, buffer)
            return time.perf_counter() - begun
        send = disk.write_batch if writing else disk.read_batch
        # `qemu-img bench` has one buffer too, at any depth.
        buffers = [pages(size)] * depth
        begun = time.perf_counter()
        places = offsets(size, count)
        while batch := list(zip(islice(places, depth), buffers, strict=False)):
            send(batch)
        return time.perf_counter() - begun


def peer(
    path: Path,
    format_name: str,
    *,
    size: int,
    count: int,
    writing: bool,
    depth: int,
    before: Callable[[], None] | None = None,
) -> float:
    """Return the seconds that `qemu-img bench` takes for the same, by its faster I/O engine."""
    best = float("inf")
    name = PEER_NAMES.get(format_name, format_name)
    for engine in ENGINES:
        if before is not None:
            before()
        command = ["qemu-img", "bench", "-f", name, "-c", str(count), "-d", str(depth)]
        command += ["-s", str(size), "-S", str(size if size == BIG else STRIDE)]
        command += ["-t", "unsafe" if writing else "writeback", "-i", engine]
        command += ["-w"] if writing else []
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            best = min(best, float(done.stdout.split("completed in")[1].split()[0]))
    return best


def requests(directory: Path, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Sequential and random requests through the contract, warm and cold."""
    for format_name in FORMATS:
        path = directory / f"disk.{format_name}"
        for name, size, writing, depth, cold in LOADS:
            title = f"{format_name} {name}"
            if not wanted(title):
                continue
            if not path.exists():
                fill(path, format_name)
            count = SIZE // BIG if size == BIG else COLD_COUNT if cold else SMALL_COUNT
            before = partial(drop_cache, path) if cold else None
            mine = theirs = float("inf")
            for _ in range(SHORT_ROUNDS if size == BIG and not cold else ROUNDS):
                for _ in ENGINES:
                    if before is not None:
                        before()
                    took = ours(
                        path, format_name, size=size, count=count, writing=writing, depth=depth
                    )
                    mine = min(mine, took)
                took = peer(
                    path,
                    format_name,
                    size=size,
                    count=count,
                    writing=writing,
                    depth=depth,
                    before=before,
                )
                theirs = min(theirs, took)
            yield request_row(title, size, count, mine, theirs)
        path.unlink(missing_ok=True)


def request_row(title: str, size: int, count: int, mine: float, theirs: float) -> Row:
    scale = count * size / 1e9 if size == BIG else count / 1000
    return Row(title, "GB/s" if size == BIG else "kIOPS", scale / mine, scale / theirs)


def fresh_writes(directory: Path, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Writing into a new image, which has to allocate."""
    for format_name in FORMATS:
        path = directory / f"new.{format_name}"
        for name, size in (("sequential", BIG), ("4k random", SMALL)):
            title = f"{format_name} {name} write new"
            if not wanted(title):
                continue
            mine = theirs = float("inf")
            count = SIZE // BIG if size == BIG else COLD_COUNT
            before = partial(create_disk, path, format_name, SIZE, overwrite=True)
            for _ in range(ROUNDS):
                for _ in ENGINES:
                    before()
                    took = ours(path, format_name, size=size, count=count, writing=True, depth=1)
                    mine = min(mine, took)
                took = peer(
                    path, format_name, size=size, count=count, writing=True, depth=1, before=before
                )
                theirs = min(theirs, took)
            path.unlink()
            yield request_row(title, size, count, mine, theirs)


def holes(directory: Path, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Reading where nothing was ever written, as a guest does that looks for file systems."""
    for format_name in FORMATS:
        path = directory / f"empty.{format_name}"
        for depth in (1, 16):
            title = f"{format_name} 4k hole read d{depth}"
            if not wanted(title):
                continue
            create_disk(path, format_name, SIZE, overwrite=True)
            load = {"size": SMALL, "count": SMALL_COUNT, "writing": False, "depth": depth}
            mine = min(ours(path, format_name, **load) for _ in range(ROUNDS * len(ENGINES)))
            theirs = min(peer(path, format_name, **load) for _ in range(ROUNDS))
            yield request_row(title, SMALL, SMALL_COUNT, mine, theirs)
        path.unlink(missing_ok=True)


def chain(directory: Path, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Opening a chain of 10, in processor time; the peer's is what it adds to one layer's."""
    title = f"qcow2 open chain of {CHAIN}"
    if not wanted(title):
        return
    layers = [directory / f"layer{n}" for n in range(CHAIN)]
    create_disk(layers[0], "qcow2", SIZE)
    for below, layer in pairwise(layers):
        create_disk(layer, "qcow2", backing=below.name)

    def qemu(path: Path, cold: bool) -> float:
        """Return the processor seconds that opening takes, with the start of the program."""
        command = ["qemu-io", "-r", "-f", "qcow2", "-c", "quit", str(path)]
        spent = 0.0
        for _ in range(20):
            if cold:
                drop_all()
            before = os.times()
            subprocess.run(command, capture_output=True, check=True)
            after = os.times()
            spent += after.children_user + after.children_system
            spent -= before.children_user + before.children_system
        return spent / 20

    def drop_all() -> None:
        for layer in layers:
            drop_cache(layer)

    def mine(cold: bool) -> float:
        spent = 0.0
        for _ in range(50):
            if cold:
                drop_all()
            begun = time.process_time()
            open_disk(layers[-1], read_only=True).close()
            spent += time.process_time() - begun
        return spent / 50

    for cold in (False, True):
        added = max(qemu(layers[-1], cold) - qemu(layers[0], cold), 1e-4) * CHAIN / (CHAIN - 1)
        name = f"{title} {'cold' if cold else 'warm'}"
        yield Row(name, "per CPU s", 1 / mine(cold), 1 / added)


def convert(directory: Path, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Converting a half-full image between every pair of formats, by both command lines."""
    for cold in (False, True):
        place = directory
        if not cold and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_ROOM:
            place = Path(tempfile.mkdtemp(dir=MEMORY))
        try:
            yield from convert_in(place, wanted, cold)
        finally:
            if place != directory:
                shutil.rmtree(place)


def convert_in(directory: Path, wanted: Callable[[str], bool], cold: bool) -> Iterator[Row]:
    held: Path | None = None
    for source, target, compressed in sorted(PAIRS, key=lambda pair: FORMATS.index(pair[0])):
        path = directory / f"half.{source}"
        title = f"convert {source} to {target}{' compressed' if compressed else ''}"
        title += " cold" if cold else " warm"
        if not wanted(title):
            continue
        if held != path:
            if held is not None:
                held.unlink()
            half_full(path, source)
            held = path
        rounds = 1 if compressed else CONVERT_ROUNDS
        flags = ["-c"] if compressed else []
        yield conversion(title, source, target, path, flags=flags, cold=cold, rounds=rounds)
    if held is not None:
        held.unlink()


def scattered(directory: Path, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Converting images with data in many pieces, warm, by both command lines."""
    place = directory
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_ROOM:
        place = Path(tempfile.mkdtemp(dir=MEMORY))
    pairs = [(a, b) for a in FORMATS for b in FORMATS if a != b]
    try:
        for piece, count, size in SCATTERS:
            for source, target in pairs:
                title = f"convert {source} to {target} {count} x {piece // KIB}K"
                if not wanted(title):
                    continue
                path = place / f"scattered-{count}.{source}"
                if not path.exists():
                    scatter(path, source, piece, count, size)
                yield conversion(title, source, target, path, amount=piece * count)
            for source in FORMATS:
                (place / f"scattered-{count}.{source}").unlink(missing_ok=True)
    finally:
        if place != directory:
            shutil.rmtree(place)


def conversion(
    title: str,
    source: str,
    target: str,
    path: Path,
    *,
    flags: Sequence[str] = (),
    cold: bool = False,
    rounds: int = CONVERT_ROUNDS,
    amount: int = CONVERT_SIZE,
) -> Row:
    """Convert the image `path`, which holds `amount` bytes, by both commands in turn."""
    out = path.parent / f"out.{target}"
    names = [PEER_NAMES.get(name, name) for name in (source, target)]
    python = [sys.executable, "-m", "ringzero", "disk"]
    python += convert_command(flags, source, target, path, out)
    qemu = ["qemu-img", *convert_command(flags, names[0], names[1], path, out)]
    mine: list[float] = []
    theirs: list[float] = []
    for turn in range(rounds):
        sides = [(python, mine), (qemu, theirs)]
        # Who comes first finds memory that the machine's host may have yet to provide.
        for command, times in sides if turn % 2 else reversed(sides):
            times.append(timed(command, path, out, cold))
    mine_s, theirs_s = (amount / 1e9 / statistics.median(times) for times in (mine, theirs))
    return Row(title, "GB/s", mine_s, theirs_s, best=min(theirs) / min(mine))


def scatter(path: Path, format_name: str, piece: int, count: int, size: int) -> None:
    """Make an image of `size` bytes with data in `count` pieces, far from one another."""
    create_disk(path, format_name, size, overwrite=True)
    dice = random.Random(count)
    data = dice.randbytes(piece)
    with open_disk(path, format_name, sync=False) as disk:
        for place in sorted(dice.sample(range(size // piece // 2), count)):
            disk.write(2 * place * piece, data)


def convert_command(
    flags: Sequence[str], source: str, target: str, path: Path, out: Path
) -> list[str]:
    return ["convert", *flags, "-t", "unsafe", "-f", source, "-O", target, str(path), str(out)]


def half_full(path: Path, format_name: str) -> None:
    create_disk(path, format_name, CONVERT_SIZE, overwrite=True)
    block = os.urandom(BIG // 2) + bytes(range(256)) * (BIG // 512)
    with open_disk(path, format_name, sync=False) as disk:
        for at in range(0, CONVERT_SIZE, 2 * BIG):
            disk.write(at, block)


def timed(command: list[str], source: Path, out: Path, cold: bool) -> float:
    out.unlink(missing_ok=True)
    if cold:
        # The host must not be busy with what the turn before has written.
        os.sync()
        drop_cache(source)
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    took = time.perf_counter() - begun
    if done.returncode or not out.exists():
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    out.unlink(missing_ok=True)
    return took


TABLE = (requests, holes, fresh_writes, chain, convert, scattered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only rows whose name contains one of these")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--compare", type=Path, help="show the change since these rows")
    parser.add_argument("--dir", type=Path, help="where the images go (default: /tmp)")
    given = parser.parse_args()
    before = json.loads(given.compare.read_text()) if given.compare else {}
    rows: list[Row] = []

    def wanted(name: str) -> bool:
        return not given.words or any(word in name for word in given.words)

    with tempfile.TemporaryDirectory(dir=given.dir) as directory:
        for measure in TABLE:
            for row in measure(Path(directory), wanted):
                rows.append(row)
                change = ""
                if row.name in before:
                    change = f"  {row.ours / before[row.name]['ours'] - 1:+.0%}"
                best = "" if row.best is None else f" (best x{row.best:.2f})"
                print(
                    f"{row.name:32} {row.ours:9.2f} {row.peer:9.2f} {row.unit:9} "
                    f"x{row.ratio:.2f}{best}{change}",
                    flush=True,
                )
    if given.json:
        table = {row.name: {**vars(row), "ratio": row.ratio} for row in rows}
        given.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
