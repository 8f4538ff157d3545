"""What our own process costs before the guest's first instruction.

    python bench/start.py [--rounds N] [--json FILE]

Starts the default guest as `ringzero run` does, with everything in the cache,
and takes the best of the rounds: from the start of the process until a vCPU
first enters the guest, by the clock and in CPU time, for each engine that
opens here; beside it an empty Python, of which each of them is made.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from ringzero.engine import select
from ringzero.engine.contract import ENGINES, Usability
from ringzero.image import micro

# Bytecode is kept: a start that compiles its modules is the first one only.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
# What people call, where it is installed; `python -m` loads a little more.
SCRIPT = Path(sys.executable).with_name("ringzero")
COMMAND = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-m", "ringzero"]


def before_guest(engine: str) -> tuple[float, float]:
    """Start a guest and end it soon; return milliseconds until it first ran: (wall, CPU)."""
    command = [*COMMAND, "run", "--engine", engine, "--timeout", "0.5"]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--stats", "--json", "--", "true"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    stats = json.loads(done.stderr.splitlines()[0])["stats"]
    return (stats["guest_entered_at"] - began) * 1000, stats["cpu_ms_before_guest"]


def empty_python() -> tuple[float, float]:
    """Return the same of a Python that does nothing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall * 1000, spent * 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    micro.ensure()
    table = {}
    kinds = {"empty python": empty_python}
    for name in ("kvm", "soft"):
        if select.judge(ENGINES.get(name)()).usability is not Usability.UNUSABLE:
            kinds[name] = lambda name=name: before_guest(name)
    for name, measure in kinds.items():
        measure()
        runs = [measure() for _ in range(arguments.rounds)]
        wall, cpu = (min(run[n] for run in runs) for n in range(2))
        table[name] = {"wall_ms": wall, "cpu_ms": cpu}
        print(f"start, {name:12}  {wall:7.1f} ms by the clock  {cpu:7.1f} ms of CPU", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
