"""`ringzero firecracker`: from InstanceStart to the first process, answers, loads, memory.

Beside `ringzero run --boot` with the same kernel, initrd and command line, in turns: once with the
default guest's command line, once with that of Firecracker's users. CPU time is what others on the
host change less. `--machines N` starts so many one after the other (150 by default, 0: none) and
looks for what they leave behind.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.doors.firecracker.microvm import BOOT_ARGS, UP, MicroVm, guest
from tests.doors.serving import Client

from ringzero.image.micro import COMMAND_LINE

RINGZERO = Path(sys.executable).with_name("ringzero")
# How long a process is given to load what it needs, as a client that describes a machine gives it.
SETTLE = 1.0
# Between the last setting and InstanceStart, in seconds, as Firecracker's first page has it.
PAUSE = 0.015
# The default guest's line without the agent, for the guest that says when it is up.
LINES = {
    "the default guest's": f"{COMMAND_LINE.replace(' ringzero.agent', '')} rdinit=/microvm",
    "Firecracker's users'": BOOT_ARGS,
}


def fresh(place: Path) -> Path:
    found = place / f"vm{time.monotonic_ns()}"
    found.mkdir()
    return found


def cpu(pid: int) -> float:
    """Return the CPU time that a process has had, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(place: Path, kernel: Path, initrd: Path, line: str) -> tuple[float, float]:
    """Return the seconds from InstanceStart to the guest's first process, and of CPU time."""
    with MicroVm(fresh(place)) as vm:
        time.sleep(SETTLE)
        vm.put("/machine-config", vcpu_count=1, mem_size_mib=256)
        vm.put(
            *("/boot-source",),
            kernel_image_path=str(kernel),
            initrd_path=str(initrd),
            boot_args=line,
        )
        time.sleep(PAUSE)
        began, used = time.monotonic(), cpu(vm.process.pid)
        vm.put("/actions", action_type="InstanceStart")
        vm.expect(UP)
        return time.monotonic() - began, cpu(vm.process.pid) - used


def run(kernel: Path, initrd: Path, line: str) -> tuple[float, float]:
    """Return the same of `ringzero run`, from the start of its process."""
    words = [RINGZERO, "run", "--boot", "--kernel", kernel, "--initrd", initrd, "-m", "256M"]
    began = time.monotonic()
    with subprocess.Popen(
        [*words, "--engine", "soft", "--append", line],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        said = b""
        while UP not in said:
            said += os.read(process.stdout.fileno(), 1 << 16)
        took = time.monotonic() - began, cpu(process.pid)
        process.kill()
    return took


def answers(vm: MicroVm, count: int = 300) -> list[float]:
    """Return how long answers take on one connection, in milliseconds."""
    client = Client(str(vm.socket))
    found = []
    for _ in range(count):
        began = time.monotonic()
        client.ask("GET", "/machine-config")
        found.append((time.monotonic() - began) * 1000)
    client.close()
    return found


def beyond(pid: int) -> float:
    """Return the private memory of a process but for its guest's, in MiB."""
    total, counts = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counts = "guest-ram" not in line and "/memory" not in line
        elif counts and line.startswith(("Private_Clean", "Private_Dirty")):
            total += int(line.split()[1])
    return total / 1024


def load(place: Path, files: dict[str, str]) -> tuple[float, float]:
    """Return how long a load took, in milliseconds, and the memory beyond the guest's, in MiB.

    The guest has answered then.
    """
    with MicroVm(fresh(place)) as vm:
        time.sleep(SETTLE)
        began = time.monotonic()
        vm.put("/snapshot/load", **files, resume_vm=True)
        took = (time.monotonic() - began) * 1000
        vm.shell("true")
        return took, beyond(vm.process.pid)


def left_behind(place: Path) -> set[str]:
    """Return what is there of a place, of /dev/shm, and of this process's descriptors."""
    found = {str(path) for path in Path("/dev/shm").iterdir()}
    return found | {str(path) for path in place.rglob("*.sock")}


def compare(place: Path, kernel: Path, initrd: Path, name: str, line: str, rounds: int) -> None:
    """Print what a start takes here and there, with a command line that is called `name`."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(start(place, kernel, initrd, line))
        theirs.append(run(kernel, initrd, line))
    print(f"{name} command line:")
    for noun, mine, other in zip(
        ("by the clock", "of CPU time"),
        zip(*ours, strict=True),
        zip(*theirs, strict=True),
        strict=True,
    ):
        first, second = statistics.median(mine), statistics.median(other)
        print(
            f"  InstanceStart to init {first:.2f} s {noun} (best {min(mine):.2f}), "
            f"ringzero run --boot {second:.2f} s (best {min(other):.2f}): {first / second:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--machines", type=int, default=150)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        kernel, initrd = guest(place)
        for name, line in LINES.items():
            compare(place, kernel, initrd, name, line, arguments.rounds)
        with MicroVm(fresh(place)) as vm:
            time.sleep(SETTLE)
            before = answers(vm)
            vm.boot(kernel, initrd)
            after = answers(vm)
            print(
                f"answers before the start {statistics.median(before):.2f} ms, "
                f"after {statistics.median(after):.2f} ms "
                f"(nine of ten within {sorted(after)[len(after) * 9 // 10]:.2f})"
            )
            alone = beyond(vm.process.pid)
            with MicroVm(fresh(place)) as other:
                other.boot(kernel, initrd)
                print(
                    f"private memory beyond the guest's: {beyond(vm.process.pid):.0f} MiB, "
                    f"{alone:.0f} of the only machine on a host, which shares no cache"
                )
            files = {
                "snapshot_path": str(place / "state"),
                "mem_file_path": str(place / "memory"),
            }
            vm.patch("/vm", state="Paused")
            vm.put("/snapshot/create", **files)
        loads = [load(place, files) for _ in range(arguments.rounds)]
        times, sizes = zip(*loads, strict=True)
        print(
            f"snapshot load {statistics.median(times):.1f} ms (best {min(times):.1f}); "
            f"private memory beyond the guest's {statistics.median(sizes):.0f} MiB"
        )
        if arguments.machines:
            known, began = left_behind(place), time.monotonic()
            for _ in range(arguments.machines):
                with MicroVm(fresh(place)) as vm:
                    vm.put("/snapshot/load", **files, resume_vm=True)
                    vm.shell("true")
            took = time.monotonic() - began
            print(
                f"{arguments.machines} machines one after the other: {took:.0f} s; left behind: "
                f"{sorted(left_behind(place) - known) or 'nothing'}"
            )


if __name__ == "__main__":
    main()
