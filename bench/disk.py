"""Disks side by side with qemu-img 7.2: a named table of ratios (above 1: ringzero is faster).

    python bench/disk.py                 all rows, about two minutes
    python bench/disk.py qcow2 chain     rows whose name contains one of the words
    python bench/disk.py --json out.json --compare before.json

Both sides use the same file, the same sizes and the same order of offsets, one
right after the other, and the better of a few runs counts. "cold" rows drop the file
from the page cache first. "d16" rows hand over 16 requests at a time: from
16 threads when the cache is cold, and one after the other in one thread, as a
virtqueue is drained, when it is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ringzero.disk import create_disk, open_disk
from ringzero.units import GIB, KIB, MIB

# Short turns: on a busy machine one of them is undisturbed.
SIZE = 256 * MIB
CONVERT_SIZE = 1 * GIB
BIG = 2 * MIB
SMALL = 4 * KIB
# Coprime to the number of 4 KiB blocks: visits blocks far apart, none twice.
STRIDE = SMALL * 7919
SMALL_COUNT = 10_000
COLD_COUNT = 1_000
# The machine is shared: the sides take turns, and the best turn of each counts.
ROUNDS = 8


@dataclass
class Row:
    """One measurement: work done and seconds taken, by each side."""

    name: str
    unit: str
    ours: float
    peer: float

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


def ours(
    path: Path, format_name: str, *, size: int, count: int, writing: bool, threads: int
) -> float:
    """Return the seconds for `count` requests of `size` bytes through the contract."""
    with open_disk(path, format_name, read_only=not writing, sync=False) as disk:
        call = disk.write if writing else disk.read_into
        if threads == 1:
            buffer = memoryview(bytearray(size))
            begun = time.perf_counter()
            for at in offsets(size, count):
                call(at, buffer)
            return time.perf_counter() - begun
        work = list(offsets(size, count))

        def part(number: int) -> None:
            buffer = memoryview(bytearray(size))
            for at in work[number::threads]:
                call(at, buffer)

        with ThreadPoolExecutor(threads) as pool:
            begun = time.perf_counter()
            list(pool.map(part, range(threads)))
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
    for engine in ("threads", "io_uring"):
        if before is not None:
            before()
        command = ["qemu-img", "bench", "-f", format_name, "-c", str(count), "-d", str(depth)]
        command += ["-s", str(size), "-S", str(size if size == BIG else STRIDE)]
        command += ["-t", "unsafe" if writing else "writeback", "-i", engine]
        command += ["-w"] if writing else []
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            best = min(best, float(done.stdout.split("completed in")[1].split()[0]))
    return best


def requests(directory: Path, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Sequential and random requests through the contract, warm and cold."""
    for format_name in ("raw", "qcow2", "vmdk", "vhdx"):
        path = directory / f"disk.{format_name}"
        for name, size, writing, depth, cold in (
            ("sequential read warm", BIG, False, 1, False),
            ("sequential read cold", BIG, False, 1, True),
            ("sequential rewrite", BIG, True, 1, False),
            ("4k read d1 warm", SMALL, False, 1, False),
            ("4k read d16 warm", SMALL, False, 16, False),
            ("4k read d1 cold", SMALL, False, 1, True),
            ("4k read d16 cold", SMALL, False, 16, True),
            ("4k write d1", SMALL, True, 1, False),
            ("4k write d16", SMALL, True, 16, False),
        ):
            title = f"{format_name} {name}"
            if not wanted(title):
                continue
            if not path.exists():
                fill(path, format_name)
            count = SIZE // BIG if size == BIG else COLD_COUNT if cold else SMALL_COUNT
            mine = theirs = float("inf")
            for _ in range(ROUNDS):
                if cold:
                    drop_cache(path)
                threads = depth if cold else 1
                took = ours(
                    path, format_name, size=size, count=count, writing=writing, threads=threads
                )
                mine = min(mine, took)
                took = peer(
                    path,
                    format_name,
                    size=size,
                    count=count,
                    writing=writing,
                    depth=depth,
                    before=partial(drop_cache, path) if cold else None,
                )
                theirs = min(theirs, took)
            scale = count * size / 1e9 if size == BIG else count / 1000
            yield Row(title, "GB/s" if size == BIG else "kIOPS", scale / mine, scale / theirs)
        path.unlink(missing_ok=True)


def fresh_writes(directory: Path, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Sequential writing into a new image, which has to allocate."""
    for format_name in ("raw", "qcow2", "vmdk", "vhdx"):
        title = f"{format_name} sequential write new"
        if not wanted(title):
            continue
        path = directory / f"new.{format_name}"
        mine = theirs = float("inf")
        count = SIZE // BIG
        for _ in range(ROUNDS):
            create_disk(path, format_name, SIZE, overwrite=True)
            took = ours(path, format_name, size=BIG, count=count, writing=True, threads=1)
            mine = min(mine, took)
            took = peer(
                path,
                format_name,
                size=BIG,
                count=count,
                writing=True,
                depth=1,
                before=partial(create_disk, path, format_name, SIZE, overwrite=True),
            )
            theirs = min(theirs, took)
        path.unlink()
        yield Row(title, "GB/s", SIZE / 1e9 / mine, SIZE / 1e9 / theirs)


def chain(directory: Path, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Opening a chain of 10, in processor time; the peer's is what it adds to one layer's."""
    if not wanted("qcow2 open chain of 10"):
        return
    create_disk(directory / "layer0", "qcow2", SIZE)
    for n in range(1, 10):
        create_disk(directory / f"layer{n}", "qcow2", backing=f"layer{n - 1}")

    def qemu(name: str) -> float:
        """Return the processor seconds that opening takes, with the start of the program."""
        command = ["qemu-io", "-r", "-f", "qcow2", "-c", "quit", str(directory / name)]
        before = os.times()
        for _ in range(20):
            subprocess.run(command, capture_output=True, check=True)
        after = os.times()
        spent = after.children_user + after.children_system
        return (spent - before.children_user - before.children_system) / 20

    peer_seconds = max(qemu("layer9") - qemu("layer0"), 1e-4) * 10 / 9
    begun = time.process_time()
    for _ in range(50):
        open_disk(directory / "layer9", read_only=True).close()
    mine = (time.process_time() - begun) / 50
    yield Row("qcow2 open chain of 10", "per CPU s", 1 / mine, 1 / peer_seconds)


def convert(directory: Path, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """Converting a half-full image between every pair of formats, by both command lines."""
    formats = ("raw", "qcow2", "vmdk", "vhdx")
    pairs = [(a, b, False) for a in formats for b in formats if a != b]
    for source, target, compressed in [*pairs, ("raw", "qcow2", True)]:
        title = f"convert {source} to {target}{' compressed' if compressed else ''}"
        if not wanted(title):
            continue
        path = directory / f"half.{source}"
        if not path.exists():
            half_full(path, source)
        out = directory / f"out.{target}"
        flags = ["-c"] if compressed else []
        command = ["convert", *flags, "-f", source, "-O", target, str(path), str(out)]
        mine = theirs = float("inf")
        for _ in range(2):
            python = [sys.executable, "-m", "ringzero.cli.main", "disk"]
            mine = min(mine, timed([*python, *command], out))
            theirs = min(theirs, timed(["qemu-img", *command], out))
        yield Row(title, "GB/s", CONVERT_SIZE / 1e9 / mine, CONVERT_SIZE / 1e9 / theirs)


def half_full(path: Path, format_name: str) -> None:
    create_disk(path, format_name, CONVERT_SIZE, overwrite=True)
    block = os.urandom(BIG // 2) + bytes(range(256)) * (BIG // 512)
    with open_disk(path, format_name, sync=False) as disk:
        for at in range(0, CONVERT_SIZE, 2 * BIG):
            disk.write(at, block)


def timed(command: list[str], out: Path) -> float:
    out.unlink(missing_ok=True)
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    out.unlink(missing_ok=True)
    return took


TABLE = (requests, fresh_writes, chain, convert)


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
                print(
                    f"{row.name:32} {row.ours:9.2f} {row.peer:9.2f} {row.unit:9} "
                    f"x{row.ratio:.2f}{change}",
                    flush=True,
                )
    if given.json:
        table = {row.name: {**vars(row), "ratio": row.ratio} for row in rows}
        given.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
