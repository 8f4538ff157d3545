"""Snapshot, restore and fork of a running guest, beside QEMU's TCG in the same run.

    python bench/fork.py                  the table
    python bench/fork.py --forks 1000     as many forks at once
    python bench/fork.py --json out.json

The guest has 512 MiB, of which it has touched 200, and a shell. QEMU saves by savevm into a
qcow2 image and by migration to a file; a fork is there another process that reads the file.
Times are medians. "first instruction" ends when the copy has run guest code, "answer" when
`exec true` in it was answered. Private memory is the growth of the processes' PSS.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.vm.qemu import QemuMachine  # noqa: E402

from ringzero.config.machine import MachineConfig  # noqa: E402 - after the path
from ringzero.image.micro import ensure  # noqa: E402
from ringzero.units import MIB  # noqa: E402
from ringzero.vm.guest.protocol import AgentState  # noqa: E402
from ringzero.vm.machine import Machine  # noqa: E402
from ringzero.vm.saved.store import Store  # noqa: E402

MEMORY = 512 * MIB
# Non-zero pages in a tmpfs.
TOUCH = "yes ringzero | head -c 200M >/dev/shm/touched"
WORK = "seq 20000 | md5sum"
# How long clones settle before their memory is measured, in seconds.
SETTLE = 3.0
MILLI = 1e3
# So many are asked one after the other, for a p99.
ASKED = 200


def timed(action: Callable[[], object]) -> float:
    """Return how many milliseconds `action` took."""
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * MILLI


def busy(action: Callable[[], object]) -> float:
    """Return how many milliseconds of CPU `action` took, which others on the host change less."""
    begin = time.process_time()
    action()
    return (time.process_time() - begin) * MILLI


def pss(*processes: int | str) -> float:
    """Return the proportional set size of processes, in MiB."""
    total = 0
    for process in processes:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss: +(\d+)", text, re.MULTILINE)[1])
    return total / 1024


def until_running(vm: Machine) -> None:
    """Return when guest code was run."""
    while vm.threads[0].vcpu.statistics()["instructions"] == 0:
        time.sleep(0)


# ---- ringzero ---------------------------------------------------------------------


def bench_ringzero(config: MachineConfig, forks: int) -> dict[str, float]:
    """Return the rows of our own machine."""
    found: dict[str, float] = {}
    with Machine(config) as vm:
        vm.run(TOUCH)
        vm.run("true")
        before = [busy(lambda: vm.run(WORK)) for _ in range(12)]
        pauses = []
        for _ in range(11):
            begin = time.perf_counter()
            seed = vm.seed()
            pauses.append((time.perf_counter() - begin) * MILLI)
            seed.close()
        found["pause of a snapshot"] = statistics.median(pauses)
        found["pause of the first one"] = pauses[0]
        with tempfile.TemporaryDirectory() as place:
            store = Store(Path(place))
            found["a snapshot written, the guest running"] = timed(lambda: store.save(vm, "one"))
            found |= bench_restores(store.get("one").restore)
        found |= bench_forks(vm)
        vm.run(WORK)
        (child,) = vm.fork(start=True)
        after = [busy(lambda: vm.run(WORK)) for _ in range(8)]
        found["slow-down at once, %"] = (after[0] / min(before) - 1) * 100
        found["slow-down later, %"] = (min(after) / min(before) - 1) * 100
        child.stop()
        found |= bench_crowd(vm, forks)
    return found


def bench_restores(restore: Callable[[], Machine]) -> dict[str, float]:
    """Return how long a copy from a snapshot takes, whose files the host has in its cache."""
    first, answer = [], []
    for _ in range(10):
        begin = time.perf_counter()
        with restore() as child:
            child.start()
            until_running(child)
            first.append((time.perf_counter() - begin) * MILLI)
            child.run("true")
            answer.append((time.perf_counter() - begin) * MILLI)
    return {
        "restore to the first instruction": statistics.median(first),
        "restore to the first answer": statistics.median(answer),
    }


def bench_forks(vm: Machine) -> dict[str, float]:
    """Return how long forks of the running machine take."""
    first, answer = [], []
    for _ in range(15):
        begin = time.perf_counter()
        (child,) = vm.fork(start=True)
        with child:
            until_running(child)
            first.append((time.perf_counter() - begin) * MILLI)
            answer.append(timed(partial(child.run, "true")))
    asked = []
    for _ in range(ASKED):
        begin = time.perf_counter()
        (child,) = vm.fork(start=True)
        with child:
            child.run("true")
            asked.append((time.perf_counter() - begin) * MILLI)
    # Each in a thread of its own, as whoever has a hundred machines asks them.
    answered, work = time.perf_counter(), time.process_time()
    crowd = vm.fork(100, start=True)
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda child: child.run("true"), crowd))
    answered, work = time.perf_counter() - answered, time.process_time() - work
    for child in crowd:
        child.stop()
    children: list[Machine] = []
    in_turn = timed(lambda: [children.extend(vm.fork(start=True)) for _ in range(100)])
    for child in children:
        child.stop()
    at_once: list[Machine] = []
    together = timed(lambda: at_once.extend(vm.fork(100, start=True)))
    for child in at_once:
        child.stop()
    return {
        "fork to the first instruction": statistics.median(first),
        "first answer of a fresh fork": statistics.median(answer),
        "fork to the first answer, p50": statistics.median(asked),
        "fork to the first answer, p99": sorted(asked)[len(asked) * 99 // 100],
        "100 forks that have answered": answered * MILLI,
        "100 forks that have answered, CPU": work * MILLI,
        "100 forks in turn": in_turn,
        "100 forks at once": together,
    }


def bench_crowd(vm: Machine, forks: int) -> dict[str, float]:
    """Return what many running, idle forks take."""
    vm.pause()
    begin = pss("self")
    children = vm.fork(forks)
    paused = pss("self")
    for child in children:
        child.start()
    time.sleep(SETTLE)
    idle = pss("self")
    work, wall = time.process_time(), time.perf_counter()
    time.sleep(SETTLE)
    work, wall = time.process_time() - work, time.perf_counter() - wall
    answer = statistics.median(timed(partial(c.run, "true")) for c in children[:: forks // 10])
    for child in children:
        child.stop()
    vm.resume()
    return {
        f"MiB private, paused fork of {forks}": (paused - begin) / forks,
        f"MiB private, idle fork of {forks}": (idle - begin) / forks,
        f"% of a CPU, idle fork of {forks}": work / wall / forks * 100,
        f"answer of one of {forks} idle forks": answer,
    }


# ---- QEMU -------------------------------------------------------------------------


class Monitor:
    """QEMU's human monitor over a socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        while not path.exists():
            time.sleep(0.001)
        self._socket.connect(str(path))
        self._read()

    def _read(self) -> str:
        text = b""
        while not text.endswith(b"(qemu) "):
            text += self._socket.recv(65536)
        return text.decode(errors="replace")

    def ask(self, command: str) -> str:
        """Send a command; return what it printed, when it has ended."""
        self._socket.sendall(command.encode() + b"\n")
        return self._read()


def qemu(config: MachineConfig, place: Path, number: int, disk: Path, *more: str) -> QemuMachine:
    """Return a QEMU that is not started yet, with a monitor in `place`."""
    machine = QemuMachine(config)
    machine.extra = [
        *("-monitor", f"unix:{place}/monitor{number},server=on,wait=off"),
        *("-drive", f"if=none,id=vm,file={disk},format=qcow2"),
        *("-device", "virtio-blk-device,drive=vm"),
        *more,
    ]
    return machine


def bench_qemu(config: MachineConfig, place: Path, copies: int) -> dict[str, float]:
    """Return the rows of QEMU."""
    found: dict[str, float] = {}
    disk, saved = place / "vm.qcow2", place / "saved"
    subprocess.run(["qemu-img", "create", "-qf", "qcow2", disk, "64M"], check=True)
    with qemu(config, place, 0, disk) as machine:
        machine.agent.wait_ready(120)
        machine.run(["sh", "-c", TOUCH], timeout=300)
        monitor = Monitor(place / "monitor0")
        found["pause of a snapshot"] = timed(lambda: monitor.ask("savevm one"))
        first, answer = [], []
        for _ in range(3):
            begin = time.perf_counter()
            monitor.ask("loadvm one")
            first.append((time.perf_counter() - begin) * MILLI)
            machine.run(["true"])
            answer.append((time.perf_counter() - begin) * MILLI)
        found["restore to the first instruction"] = statistics.median(first)
        found["restore to the first answer"] = statistics.median(answer)
        monitor.ask("stop")
        found["pause of a migration to a file"] = timed(
            lambda: monitor.ask(f'migrate "exec:cat >{saved}"')
        )
        state = machine.agent.save()
    return found | bench_qemu_copies(config, place, saved, state, copies)


def bench_qemu_copies(
    config: MachineConfig, place: Path, saved: Path, state: AgentState, copies: int
) -> dict[str, float]:
    """Return what further processes take that go on from the file."""
    first, answer, machines = [], [], []
    try:
        begin_all = time.perf_counter()
        for number in range(1, copies + 1):
            disk = place / f"copy{number}.qcow2"
            subprocess.run(["qemu-img", "create", "-qf", "qcow2", disk, "64M"], check=True)
            begin = time.perf_counter()
            machine = qemu(config, place, number, disk, "-incoming", f"exec:cat {saved}")
            machines.append(machine)
            machine.start()
            monitor = Monitor(place / f"monitor{number}")
            while "VM status: running" not in monitor.ask("info status"):
                if "paused" in (status := monitor.ask("info status")) and "inmigrate" not in status:
                    monitor.ask("cont")
                time.sleep(0.002)
            first.append((time.perf_counter() - begin) * MILLI)
            machine.agent.restore(state)
            answer.append(timed(lambda machine=machine: machine.run(["true"])))
        everything = (time.perf_counter() - begin_all) * MILLI
        time.sleep(SETTLE)
        private = pss(*(machine.process.pid for machine in machines)) / copies
    finally:
        for machine in machines:
            machine.stop()
    return {
        "fork to the first instruction": statistics.median(first),
        "first answer of a fresh fork": statistics.median(answer),
        f"{copies} forks in turn": everything,
        "MiB private, idle fork": private,
    }


# ---- the table ----------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forks", type=int, default=200, help="how many at once (default 200)")
    parser.add_argument("--copies", type=int, default=4, help="of QEMU (default 4)")
    parser.add_argument("--only", choices=("ringzero", "qemu"))
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    image = ensure()
    config = MachineConfig.create(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        memory=MEMORY,
        engine="soft",
        agent=True,
    )
    rows: dict[str, dict[str, float]] = {}
    if arguments.only != "qemu":
        rows["ringzero"] = bench_ringzero(config, arguments.forks)
    if arguments.only != "ringzero":
        with tempfile.TemporaryDirectory() as place:
            rows["qemu"] = bench_qemu(config, Path(place), arguments.copies)
    for side, values in rows.items():
        print(f"{side} (milliseconds, where nothing else is said)")
        for name, value in values.items():
            print(f"  {name:42} {value:10.2f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
