"""From a process's start to the first byte of a command's answer: resumed, booted, and others.

    python bench/answer.py                  the table, 200 rounds
    python bench/answer.py --rounds 20 --json out.json
    python bench/answer.py --only ringzero  without QEMU and bwrap

Each round does one of each row, so that all have the same noise; QEMU has one round of ten, as it
takes longer. The guest is the default one, with 512 MiB, on the software engine. "in python" is a
process that has ringzero loaded: from `Machine(image="micro")` to the answer; "from a pool" has
`ringzero pool` (of the CPU time, what the caller took). QEMU (TCG) boots the
same kernel and initrd, or goes on from a file that it was saved to. bwrap runs the command without
any machine: what starting a process costs at least. Times are by the clock, p50 and p99;
of ringzero's processes the CPU time, which others on the host change less, is beside them.

What the first start of a description leaves to the background, making its template, is measured in
CPU time, too; the bench fails where that is over TEMPLATE_LIMIT of a start that boots.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.start import COMMAND, ENVIRONMENT  # noqa: E402 - after the path
from tests.vm.qemu import QEMU, QemuMachine  # noqa: E402

from ringzero.config.machine import MachineConfig  # noqa: E402
from ringzero.config.tree import config_to_tree  # noqa: E402
from ringzero.engine import select  # noqa: E402
from ringzero.host import background  # noqa: E402
from ringzero.image import micro  # noqa: E402
from ringzero.settings import POOL_DIR, TEMPLATES  # noqa: E402
from ringzero.units import MIB  # noqa: E402
from ringzero.vm import boot  # noqa: E402
from ringzero.vm.machine import Machine  # noqa: E402
from ringzero.vm.saved import making  # noqa: E402
from ringzero.vm.saved.templates import Templates  # noqa: E402
from ringzero.vm.start import MAKING  # noqa: E402

MEMORY = 512 * MIB
# QEMU has one round of so many.
SELDOM = 10
WORD = b"x"
Measure = Callable[[], float]
FULL = 200
# What a template may cost, in starts that boot (`--boot`, CPU time): it is a boot, and a fifth.
TEMPLATE_LIMIT = 1.3
TEMPLATES_MADE = 3


def first_byte(*words: str, environment: Mapping[str, str] = ENVIRONMENT) -> float:
    """Return how many seconds a process takes to its first byte of output; wait for its end."""
    began = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == WORD
        return time.perf_counter() - began


def run(*flags: str) -> Measure:
    """Return what measures `ringzero run` with `flags`."""
    command = (*COMMAND, "run", "--engine", "soft", *flags, "--", "echo", WORD.decode())
    return lambda: first_byte(*command)


@contextmanager
def pool() -> Iterator[Measure]:
    """Yield what measures `ringzero run` with a pool, which nobody else has, for the block."""
    with tempfile.TemporaryDirectory() as place:
        environment = ENVIRONMENT | {POOL_DIR.name: f"{place}/pools"}
        start = [*COMMAND, "pool", "start", "--engine", "soft", "--size", "4"]
        subprocess.run(start, env=environment, check=True, capture_output=True)
        command = (*COMMAND, "run", "--engine", "soft", "--", "echo", WORD.decode())
        try:
            yield lambda: first_byte(*command, environment=environment)
        finally:
            stop = [*COMMAND, "pool", "stop"]
            subprocess.run(stop, env=environment, check=True, capture_output=True)


def in_python() -> float:
    """Return how long a machine takes to its answer in this process."""
    began = time.perf_counter()
    with Machine(image="micro", engine="soft", memory=MEMORY) as machine:
        answer = machine.run(["echo", WORD.decode()]).stdout
        took = time.perf_counter() - began
        assert answer.startswith(WORD)
        assert machine.stats()["started"] == "resumed"
    return took


def qemu_boot(config: MachineConfig) -> float:
    """Return how long QEMU takes from its start to the answer, booting."""
    began = time.perf_counter()
    machine = QemuMachine(config)
    try:
        machine.start()
        said: list[bytes] = []
        command = machine.agent.run(["echo", WORD.decode()], on_stdout=said.append)
        command.wait(300)
        return time.perf_counter() - began
    finally:
        machine.stop()


class QemuSaved:
    """A guest that QEMU has saved to a file, and processes that go on from it."""

    def __init__(self, config: MachineConfig, place: Path) -> None:
        from bench.fork import Monitor, qemu

        self._monitor, self._make = Monitor, qemu
        self._config, self._place, self._file = config, place, place / "saved"
        self._count = 0
        machine = self._machine()
        try:
            machine.start()
            machine.agent.wait_ready(300)
            machine.agent.run(["true"]).wait(300)
            monitor = Monitor(place / f"monitor{self._count}")
            monitor.ask("stop")
            monitor.ask(f'migrate "exec:cat >{self._file}"')
            self._state = machine.agent.save()
        finally:
            machine.stop()

    def _machine(self, *more: str) -> QemuMachine:
        self._count += 1
        disk = self._place / f"disk{self._count}.qcow2"
        subprocess.run(["qemu-img", "create", "-qf", "qcow2", disk, "64M"], check=True)
        return self._make(self._config, self._place, self._count, disk, *more)

    def go_on(self) -> float:
        """Return how long a process takes that goes on from the file, to the answer."""
        began = time.perf_counter()
        machine = self._machine("-incoming", f"exec:cat {self._file}")
        try:
            machine.start()
            monitor = self._monitor(self._place / f"monitor{self._count}")
            while "VM status: running" not in (status := monitor.ask("info status")):
                if "paused" in status and "inmigrate" not in status:
                    monitor.ask("cont")
                time.sleep(0.002)
            machine.agent.restore(self._state)
            machine.agent.run(["echo", WORD.decode()]).wait(300)
            return time.perf_counter() - began
        finally:
            machine.stop()


def template_seconds(config: MachineConfig) -> float:
    """Return the CPU time of a process that makes a template in a store of its own; the least."""
    description, least = json.dumps(config_to_tree(config)).encode(), math.inf
    for _ in range(TEMPLATES_MADE):
        with tempfile.TemporaryDirectory() as store:
            before = children_seconds()
            command = [sys.executable, "-P", "-c", background.PROGRAM, MAKING, f"{store}/templates"]
            subprocess.run(command, input=description, env=ENVIRONMENT, check=True)
            least = min(least, children_seconds() - before)
    return least


def children_seconds() -> float:
    """Return the CPU time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def quantile(values: list[float], part: float) -> float:
    """Return the value below which `part` of them lie."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=FULL)
    parser.add_argument("--only", choices=("ringzero",))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    image = micro.ensure()
    own = {"kernel": image.kernel, "initrd": image.initrd, "command_line": image.command_line}
    config = MachineConfig.create(**own, memory=MEMORY, engine="soft", agent=True)
    os.environ[TEMPLATES.name] = ENVIRONMENT[TEMPLATES.name] = "1G"
    fields = {"memory": MEMORY, "engine": "soft"}
    description = boot.complete(None, "micro", fields)
    making.make(description, select.choose("soft"), Templates())
    template = template_seconds(description)
    rows: dict[str, Measure] = {"resumed": run(), "booted": run("--boot"), "in python": in_python}
    seldom: dict[str, Measure] = {}
    times: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    with ExitStack() as stack:
        rows["from a pool"] = stack.enter_context(pool())
        if arguments.only is None and QEMU is not None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            seldom["QEMU boots"] = lambda: qemu_boot(config)
            seldom["QEMU -incoming"] = QemuSaved(config, place).go_on
        if arguments.only is None and (bwrap := shutil.which("bwrap")):
            rows["bwrap"] = lambda: first_byte(bwrap, "--bind", "/", "/", "echo", WORD.decode())
        for number in range(arguments.rounds):
            for name, measure in (rows | (seldom if number % SELDOM == 0 else {})).items():
                before = children_seconds()
                times.setdefault(name, []).append(measure() * 1000)
                cpu.setdefault(name, []).append((children_seconds() - before) * 1000)
    table = {}
    for name, values in times.items():
        row = {
            "p50": statistics.median(values),
            "p99": quantile(values, 0.99),
            "best": min(values),
            "rounds": len(values),
            "cpu p50": statistics.median(cpu[name]),
            "cpu best": min(cpu[name]),
        }
        table[name] = row
        shown = "  ".join(f"{part} {row[part]:8.1f}" for part in ("p50", "p99", "best"))
        used = f"  CPU {row['cpu p50']:7.0f} {row['cpu best']:7.0f}" if row["cpu best"] else ""
        print(f"{name:16} {shown} ms{used}")
    ratio = table["booted"]["p50"] / table["resumed"]["p50"]
    print(f"a boot takes {ratio:.1f} times as long as a start that resumes")
    cost = template * 1000 / table["booted"]["cpu best"]
    print(f"a template takes {template:.2f} s of CPU time, {cost:.2f} times a start that boots")
    table["template"] = {"cpu best": template * 1000, "starts that boot": cost}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")
    return int(cost > TEMPLATE_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
