"""Loss of power at any moment: what was flushed is there, and nothing worse than a leak."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringzero.disk import create_disk, open_disk
from ringzero.errors import DiskUnsupportedError
from tests.disk.lossy import ROUNDS, LossyStorage, PowerLostError, create_in, open_in

SECTOR = 512
SIZE = 1024 * 1024

# (format, creation options, whether snapshots are part of the work). A format joins with a line.
CRASHABLE = [
    ("raw", {}, False),
    ("qcow2", {"cluster_size": "512"}, True),
    ("qcow2", {"cluster_size": "512", "refcount_bits": "64"}, False),
    ("qcow2", {"cluster_size": "4K", "refcount_bits": "2"}, False),
    ("qcow2", {"cluster_size": "4K"}, True),
    ("qcow2", {"cluster_size": "64K", "compat": "0.10"}, False),
    ("qcow2", {"cluster_size": "16K", "extended_l2": "on"}, True),
]


class Work:
    """A random load and, for each sector, the values that it may have after a crash."""

    def __init__(self, dice, size):
        self.dice = dice
        self.flushed = [b"\0" * SECTOR] * (size // SECTOR)
        self.current = list(self.flushed)
        self.since = [set() for _ in self.flushed]
        self.saved = {}
        self.stamp = 0

    def change(self, first, count, value):
        for sector in range(first, first + count):
            self.since[sector].add(value)
            self.current[sector] = value

    def step(self, disk, snapshots):
        dice = self.dice
        action = dice.choices(
            ["write", "zero", "discard", "flush", "compress", "take", "apply", "drop"],
            [10, 3, 2, 4, 2, 0.4 * snapshots, 0.3 * snapshots, 0.3 * snapshots],
        )[0]
        first = dice.randrange(len(self.current))
        count = min(dice.choice([1, 1, 3, 8, 40, 300]), len(self.current) - first)
        if action == "write":
            self.stamp += 1
            value = self.stamp.to_bytes(4, "little") * (SECTOR // 4)
            self.change(first, count, value)
            disk.write(first * SECTOR, value * count)
        elif action == "zero":
            self.change(first, count, bytes(SECTOR))
            disk.write_zeroes(first * SECTOR, count * SECTOR)
        elif action == "discard":
            for sector in range(first, first + count):
                self.since[sector].add(bytes(SECTOR))
            disk.discard(first * SECTOR, count * SECTOR)
            for sector in range(first, first + count):
                self.current[sector] = disk.read(sector * SECTOR, SECTOR)
        elif action == "compress" and disk.compression is not None:
            unit = disk.compression.unit
            offset = first * SECTOR // unit * unit
            count = min(unit, disk.size - offset) // SECTOR
            self.stamp += 1
            value = self.stamp.to_bytes(4, "little") * (SECTOR // 4)
            packed = disk.compression.pack(value * count)
            if packed is not None:
                self.change(offset // SECTOR, count, value)
                disk.compression.store(offset, packed)
        elif action == "flush":
            before = list(self.current)
            disk.flush()
            self.flushed = before
            self.since = [set() for _ in before]
        elif action == "take":
            self.stamp += 1
            # Not a number, which could be the id of another one.
            disk.snapshots.create(f"s{self.stamp}")
            self.saved[f"s{self.stamp}"] = list(self.current)
        elif action == "apply" and self.saved:
            name = dice.choice(sorted(self.saved))
            for sector, value in enumerate(self.saved[name]):
                self.change(sector, 1, value)
            disk.snapshots.apply(name)
        elif action == "drop" and self.saved:
            name = dice.choice(sorted(self.saved))
            del self.saved[name]
            disk.snapshots.delete(name)

    def verify(self, disk):
        for sector, flushed in enumerate(self.flushed):
            seen = disk.read(sector * SECTOR, SECTOR)
            assert seen == flushed or seen in self.since[sector], (sector, seen[:8], flushed[:8])


def crash_once(format_name, options, snapshots, seed):
    dice = random.Random(seed)
    storage = LossyStorage()
    if format_name == "raw":
        storage.discarded = b"\0"
    create_in(storage, format_name, SIZE, options)
    storage.operations_left = dice.randrange(1, 250)
    work = Work(dice, SIZE)
    try:
        disk = open_in(storage, format_name)
        while True:
            work.step(disk, snapshots)
    except (PowerLostError, DiskUnsupportedError):
        pass
    survivor = LossyStorage(storage.after_crash(dice))
    disk = open_in(survivor, format_name)
    try:
        report = disk.check()
        assert report.errors == 0, report.messages
    except DiskUnsupportedError:
        pass
    work.verify(disk)
    # It goes on working, and what the crash leaked is found.
    work.stamp = 1 << 20
    work.current = [disk.read(n * SECTOR, SECTOR) for n in range(len(work.current))]
    work.saved = {}
    for _ in range(10):
        work.step(disk, False)
    disk.flush()
    assert [disk.read(n * SECTOR, SECTOR) for n in range(len(work.current))] == work.current


@pytest.mark.parametrize(("format_name", "options", "snapshots"), CRASHABLE, ids=str)
def test_random_loss_of_power(format_name, options, snapshots):
    for seed in range(25 * ROUNDS):
        try:
            crash_once(format_name, options, snapshots, seed)
        except BaseException as fault:
            fault.add_note(f"seed {seed}")
            raise


_WRITER = """
import random, sys
from ringzero.disk import open_disk
dice = random.Random(int(sys.argv[2]))
with open_disk(sys.argv[1], "qcow2", sync=False) as disk:
    number = 0
    print("ready", flush=True)
    while True:
        number += 1
        slot = dice.randrange(disk.size // 4096)
        disk.write(slot * 4096, number.to_bytes(8, "little") * 512)
        if number % 20 == 0:
            disk.flush()
            print(number, flush=True)
"""


@pytest.mark.parametrize("seed", range(3 * ROUNDS))
def test_killed_process(seed, tmp_path):
    path = tmp_path / "disk.qcow2"
    create_disk(path, "qcow2", 16 << 20, options={"cluster_size": "4K"})
    child = subprocess.Popen(
        [sys.executable, "-c", _WRITER, path, str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    assert child.stdout.readline() == "ready\n"
    time.sleep(random.Random(seed).uniform(0.02, 0.3))
    child.send_signal(signal.SIGKILL)
    told = child.stdout.read().split()
    child.wait()
    flushed = int(told[-1]) if told else 0
    dice, slots = random.Random(seed), {}
    for number in range(1, flushed + 1):
        slots[dice.randrange((16 << 20) // 4096)] = number
    with open_disk(path) as disk:
        report = disk.check()
        assert report.errors == 0, report.messages
        for slot, number in slots.items():
            seen = disk.read(slot * 4096, 4096)
            # Later writes that were not flushed may have come through.
            assert int.from_bytes(seen[:8], "little") >= number
            assert seen == seen[:8] * 512
