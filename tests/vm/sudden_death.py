"""Kills processes at random moments while they save, restore, fork, revert, move and remove.

    python -m tests.vm.sudden_death DIRECTORY ROUNDS SEED

A process that has engine and machine in memory forks a victim for each round, so
that a round takes some 50 ms. The victim's machine counts in two words of its memory and
does what is drawn for it; it reports what was done. After its death the store must hold what was
reported, whole, and nothing else but what was under way; its user's disk, half reverted
perhaps, must become right by reverting again. Prints what was under way, and how often.
"""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from ringzero.errors import RingzeroError
from ringzero.isa.x86.architecture import startup_state
from ringzero.vm.machine import Machine
from ringzero.vm.saved import blobs
from ringzero.vm.saved.store import Store
from ringzero.vm.saved.transfer import export, import_file

KIB = 1 << 10
# Real mode, at 0x1000: count at 0x2000, then at 0x2100, for ever.
COUNTERS = bytes.fromhex("ff060020 ff060021 ebf6")
DISK = 1024 * KIB
# The longest life of a victim, in seconds: two or three actions.
LIFE = 0.08
MOST = 6
ACTS = (*("save",) * 4, *("restore",) * 3, *("rm",) * 4, *("revert",) * 3, "fork", "fork", "move")


class Rig:
    """The store, the user's disk, and the machine that victims are copies of."""

    def __init__(self, place: Path, generator: random.Random) -> None:
        self.place = place
        self.chance = generator
        self.store = Store(place / "snapshots")
        self.disk = place / "disk.img"
        self.config = {"memory": "32M", "engine": "soft", "disks": [f"{self.disk},format=raw"]}
        self.marks = []
        with self._machine(place / "copied.img") as machine:
            self.seed = machine.seed()
            self.engine = machine.parts.engine
        with self._machine(self.disk) as machine:
            for number in range(2):
                data = bytes((number + 1,)) * 512
                for at in range(0, DISK, 64 * KIB):
                    machine.disks[0].write(at, data)
                self.marks.append(self.store.save(machine, f"mark{number}"))

    def _machine(self, disk: Path) -> Machine:
        disk.write_bytes(bytes(DISK))
        machine = Machine(**self.config | {"disks": [f"{disk},format=raw"]})
        machine.memory[0x1000 : 0x1000 + len(COUNTERS)] = COUNTERS
        machine.cpu.state = replace(startup_state(0), rip=0x1000)
        return machine

    # ---- the victim ---------------------------------------------------------

    def live(self, number: int, report: int) -> None:
        """Do one thing after the other until death."""

        def say(*words: str) -> None:
            os.write(report, " ".join(words).encode() + b"\n")

        with Machine.from_seed(self.seed, engine=self.engine) as machine:
            machine.start()
            for turn in range(1000):
                act = self.chance.choice(ACTS)
                names = [n for n in self.store.names() if not n.startswith("mark")]
                if act in ("rm", "move") and not names:
                    act = "save"
                name = f"s{number}-{turn}"
                say("begin", act, name)
                if act == "save":
                    while len(names) >= MOST:
                        self.remove(names.pop(0), say)
                    machine.disks[0].write(4096, name.encode().ljust(512, b"\0"))
                    self.store.save(machine, name, compress=self.chance.random() < 0.3)
                    say("saved", name, name)
                elif act == "restore":
                    with self.store.get(self.chance.choice(self.store.names())).start() as copy:
                        copy.pause()
                elif act == "fork":
                    for child in machine.fork(3, start=True):
                        child.stop()
                elif act == "rm":
                    self.remove(self.chance.choice(names), say)
                elif act == "move":
                    source = self.store.get(self.chance.choice(names))
                    export(source, self.place / "file")
                    import_file(self.store, self.place / "file", name)
                    say("saved", name, mark(source))
                else:
                    with Machine(**self.config) as own:
                        own.revert(self.chance.choice(self.marks))

    def remove(self, name: str, say) -> None:
        say("removing", name)
        self.store.remove(name)

    # ---- after its death ----------------------------------------------------

    def look(self, expected: dict[str, str], said: list[list[str]]) -> dict[str, str]:
        """Check everything; return what each snapshot is marked with."""
        for words in said:
            if words[0] == "saved":
                expected[words[1]] = words[2]
            elif words[0] == "removing":
                expected.pop(words[1], None)
        self.store.sweep()
        good, bad = self.store.all()
        assert not bad, bad
        found = {}
        for snapshot in good:
            assert snapshot.check() == [], snapshot.name
            if not snapshot.name.startswith("mark"):
                found[snapshot.name] = mark(snapshot)
        assert expected.items() <= found.items(), (expected, found)
        assert len(found) - len(expected) <= 1, (expected, found)
        named = {digest for snapshot in good for digest in snapshot.manifest.blobs}
        assert {path.name for path in self.store.blobs.iterdir()} == named
        assert not list(self.store.root.glob(".partial-*"))
        return found

    def mend(self) -> None:
        """Revert the user's disk, which the victim may have left in between."""
        wanted = self.chance.choice(self.marks)
        with Machine(**self.config) as own:
            own.revert(wanted)
        with self.store.get(wanted.name).seed() as seed:
            assert self.disk.read_bytes() == seed.disks[0].read(0, DISK)


def mark(snapshot) -> str:
    """Return what a snapshot's disk is marked with; its memory must be of one instant."""
    with snapshot.seed() as seed:
        first = dict(blobs.memory_blocks(seed.memory))[0]
        one, two = (int.from_bytes(first[at : at + 2], "little") for at in (0x2000, 0x2100))
        assert (one - two) & 0xFFFF in (0, 1), (snapshot.name, one, two)
        return bytes(seed.disks[0].read(4096, 512)).rstrip(b"\0").decode()


def main(place: Path, rounds: int, seed: int) -> None:
    generator = random.Random(seed)
    rig = Rig(place, generator)
    expected: dict[str, str] = {}
    interrupted: collections.Counter[str] = collections.Counter()
    for number in range(rounds):
        reading, writing = os.pipe()
        victim = os.fork()
        if victim == 0:
            try:
                rig.chance = random.Random(f"{seed} {number}")
                rig.live(number, writing)
            except RingzeroError as fault:
                os.write(writing, f"fault {type(fault).__name__} {fault.message}\n".encode())
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            first = pipe.readline()
            time.sleep(generator.random() * LIFE)
            os.kill(victim, signal.SIGKILL)
            said = [line.decode().split() for line in (first, *pipe) if line.endswith(b"\n")]
        assert os.waitpid(victim, 0)[1] == signal.SIGKILL, said
        interrupted[[words[1] for words in said if words[0] == "begin"][-1]] += 1
        expected = rig.look(expected, said)
        if number % 8 == 0:
            rig.mend()
    print(json.dumps({"rounds": rounds, **dict(sorted(interrupted.items()))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
