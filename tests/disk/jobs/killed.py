"""Kill a process at a random moment of a block job, and look at what its disk is then.

    python -m tests.disk.jobs.killed KIND ROUNDS SEED

Each round forks. The child makes a chain, starts the job, and goes on writing numbered sectors
as a guest would; it says before each write that it begins, and when they were flushed. Its
owner writes the disk's place to a file by one rename. After SIGKILL, the image that this file
names has every write that was flushed, and opens, and has no errors. Prints how often the job had
come how far.
"""

import json
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from ringzero.disk import create_disk, open_disk
from ringzero.disk.instant import LiveDisk
from ringzero.disk.jobs.backup import Backup
from ringzero.disk.jobs.commit import ActiveCommit, LowerCommit
from ringzero.disk.jobs.contract import Owner
from ringzero.disk.jobs.mirror import Mirror
from ringzero.disk.jobs.stream import Stream

SIZE = 2 << 20
SECTORS = SIZE // 512
NOTE = struct.Struct("<cQQ")  # what, number, sector
# How long a child lives, in seconds: the jobs take some hundredths.
LIFE = 0.08


class Noted(Owner):
    def __init__(self, folder, pipe):
        super().__init__()
        self.folder = folder
        self.pipe = pipe

    def moved(self, path, format):
        fresh = self.folder / "place.new"
        fresh.write_text(json.dumps([path, format]))
        fresh.replace(self.folder / "place")
        os.write(self.pipe, NOTE.pack(b"p", 0, 0))


def sector(number):
    return struct.pack("<Q", number) * 64


def prepare(folder, dice, model):
    """Make a chain of four layers with numbered sectors; return how many there are."""
    number = 0
    for depth in range(4):
        path = folder / f"layer{depth}"
        if depth:
            create_disk(path, "qcow2", backing=f"layer{depth - 1}", backing_format="qcow2")
        else:
            create_disk(path, "qcow2", SIZE)
        with open_disk(path) as disk:
            for _ in range(60):
                number += 1
                at = dice.randrange(SECTORS)
                disk.write(at * 512, sector(number))
                model[at] = number
    (folder / "place").write_text(json.dumps([str(folder / "layer3"), "qcow2"]))
    return number


def child(kind, folder, pipe, dice, number):
    live = LiveDisk(open_disk(folder / "layer3", "qcow2"))
    if kind in ("mirror", "backup"):
        create_disk(folder / "target", "qcow2", SIZE)
        target = open_disk(folder / "target")
    owner = Noted(folder, pipe)
    job = {
        "mirror": lambda: Mirror(live, target, owner=owner),
        "backup": lambda: Backup(live, target),
        "commit": lambda: ActiveCommit(live, dice.randrange(1, 4), owner=owner),
        "lower": lambda: LowerCommit(live, *dice.choice([(1, 2), (1, 3), (2, 3)])),
        "stream": lambda: Stream(live, dice.choice([None, 2, 3])),
    }[kind]()
    os.write(pipe, NOTE.pack(b"s", 0, 0))
    job.start()
    told = False
    while True:
        number += 1
        at = dice.randrange(SECTORS)
        os.write(pipe, NOTE.pack(b"b", number, at))
        live.write(at * 512, sector(number))
        if number % 20 == 0:
            live.flush()
            os.write(pipe, NOTE.pack(b"f", number, 0))
        if job.info().ready:
            job.complete()
        if job.state.value == "concluded" and not told:
            told = True
            os.write(pipe, NOTE.pack(b"e" if job.error else b"c", 0, 0))
        time.sleep(0.0002)


def run(kind, seed, seen):
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), {}
        number = prepare(folder, dice, model)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reading)
                child(kind, folder, writing, dice, number)
            finally:
                os._exit(1)
        os.close(writing)
        data = os.read(reading, NOTE.size)
        end = time.monotonic() + dice.random() * LIFE
        while (left := end - time.monotonic()) > 0:
            time.sleep(left)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        while piece := os.read(reading, 1 << 16):
            data += piece
        os.close(reading)
        assert os.WIFSIGNALED(status), "it ended by itself"
        # Of each sector, what it may hold: what was flushed last, and all that came then.
        may, kinds = {at: [count] for at, count in model.items()}, Counter()
        for about, count, at in NOTE.iter_unpack(data[: len(data) // NOTE.size * NOTE.size]):
            kinds[about] += 1
            if about == b"b":
                may.setdefault(at, [0]).append(count)
            elif about == b"f":
                may = {at: numbers[-1:] for at, numbers in may.items()}
        assert not kinds[b"e"], "the job failed"
        path, format = json.loads((folder / "place").read_text())
        with open_disk(path, format) as disk:
            for layer in disk.chain():
                report = layer.check()
                assert not report.errors, (layer.path, report.messages)
            for at in range(SECTORS):
                (found,) = struct.unpack_from("<Q", disk.read(at * 512, 512))
                assert found in may.get(at, [0]), (at, found, may.get(at))
        seen["concluded" if kinds[b"c"] else "moved" if kinds[b"p"] else "working"] += 1


def main(kind, rounds, seed):
    seen = Counter()
    for number in range(int(rounds)):
        run(kind, f"{kind} {seed} {number}", seen)
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
