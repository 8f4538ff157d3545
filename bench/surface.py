"""What of a host a machine's process can come to: code, system calls, descriptors, memory.

    python bench/surface.py [--qemu]

Beside it, with --qemu, QEMU's `-M microvm` and `-M q35`, by software, with the same kernel: their
system calls are those that `strace -f` sees until the guest idles; their code cannot be counted so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MEMORY = 256
# Until a guest under strace idles, in seconds.
_BOOT = 30
_QEMU = {
    "microvm": "-M microvm,acpi=on -nodefaults -no-user-config -nographic -serial stdio",
    "q35": "-M q35 -nographic",
}
_MEASURE = """
import json, os, sys, time
import ringzero
from pathlib import Path
from ringzero.control.machine import jail
from ringzero.host.jail import confine, roles
from ringzero.records import replace
from ringzero.settings import Jail
level, net, board = Jail(sys.argv[1]), sys.argv[2], sys.argv[3]
config = dict(image="micro", memory="256M", engine="soft", net=net, board=board)
with ringzero.Machine(**config) as machine:
    calls = {}
    if level is not Jail.NONE:
        jail.enter(machine, level)
        # Whom they may signal is Landlock's affair, and nobody but themselves.
        freedom = replace(confine.needs_granted().freedom, signals=True)
        calls = {role.value: sorted(roles.rules(role, freedom, 0)) for role in roles.Role}
    machine.run("true")
    sources = [getattr(m, "__file__", None) or "" for m in list(sys.modules.values())]
    ours = [s for s in sources if s.startswith(str(Path(ringzero.__file__).parent))]
    lines = 0
    if level is Jail.NONE:
        lines = sum(len(Path(s).read_text().splitlines()) for s in ours if s.endswith(".py"))
    print(json.dumps({"modules": len(ours), "lines": lines, "calls": calls,
                      "descriptors": len(os.listdir("/proc/self/fd")), "pid": os.getpid()}))
    sys.stdout.flush()
    sys.stdin.readline()
"""


def beyond_ram(pid: int, size: int) -> int:
    """Return the private bytes of a process without its mappings as large as the guest's memory."""
    total = inside = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            first, last = (int(text, 16) for text in found.groups())
            inside = last - first >= size // 2
        elif line.startswith("Private_") and not inside:
            total += int(line.split()[1]) * 1024
    return total


def measure(level: str, net: str, board: str) -> dict[str, Any]:
    """Return the figures of one machine of ours."""
    command = [sys.executable, "-c", _MEASURE, level, net, board]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        found: dict[str, Any] = json.loads(process.stdout.readline())
        found["beyond"] = beyond_ram(found["pid"], MEMORY << 20)
        process.communicate("\n")
    return found


def measure_qemu(words: str) -> dict[str, Any]:
    """Return the figures of QEMU: the calls that it made, descriptors, memory."""
    from ringzero.image import micro

    image = micro.ensure()
    command = ["qemu-system-x86_64", *words.split(), "-accel", "tcg", "-m", str(MEMORY)]
    command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
    command += ["-append", "console=ttyS0"]
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace")
        strace = ["strace", "-c", "-f", "-o", str(trace)]
        with subprocess.Popen(
            [*strace, *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        ) as process:
            time.sleep(_BOOT)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            pid = int(children.split()[0])
            found = {
                "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
                "beyond": beyond_ram(pid, MEMORY << 20),
            }
            os.kill(pid, 15)
            process.wait()
        names = {
            line.split()[-1]
            for line in trace.read_text().splitlines()
            if re.match(r"\s*\d+\.\d+ ", line)
        }
    return found | {"calls": {"all": sorted(names - {"total"})}}


_OURS = (
    ("none", "user", "microvm"),
    ("auto", "user", "microvm"),
    ("strict", "user", "microvm"),
    ("strict", "none", "microvm"),
    ("none", "user", "minimal"),
    ("strict", "user", "minimal"),
    ("strict", "none", "minimal"),
)


def _tell(what: str, found: dict[str, Any], names: bool) -> None:
    counts = {role: len(calls) for role, calls in found["calls"].items()} or "all"
    print(
        f"{what}: calls {counts}; {found['descriptors']} descriptors; "
        f"{found['beyond'] >> 20} MiB beyond the guest's memory",
        flush=True,
    )
    for role, calls in found["calls"].items() if names else ():
        print(f"  {role}: {' '.join(calls)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qemu", action="store_true")
    parser.add_argument("--names", action="store_true", help="name the system calls, too")
    arguments = parser.parse_args()
    for level, net, board in _OURS:
        found = measure(level, net, board)
        code = f"{found['modules']} modules" + (f", {found['lines']} lines" * (found["lines"] > 0))
        _tell(f"ringzero {board} --jail={level} --net {net}: {code}", found, arguments.names)
    if arguments.qemu:
        for name, words in _QEMU.items():
            _tell(f"qemu -M {name}, made", measure_qemu(words), arguments.names)


if __name__ == "__main__":
    main()
