"""Where the time of a start that resumes goes: each stage of `ringzero run -- true`.

    python bench/stages.py [--rounds N] [--json FILE]

Functions at which stages end are watched in processes of their own, which take a little longer for
that. Of each stage the least and the median of CPU time, and by the clock; loading modules is a
stage of its own, wherever it happens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.start import ENVIRONMENT  # noqa: E402 - after the path

# What a stage ends with: a function, its module and class, and what it is called here.
ENDS = {
    "ringzero.cli.verbs.run": [("Run.describe", "command line, description, image")],
    "ringzero.vm.start": [
        ("Start.plan", "the template looked for, and opened"),
        ("Start.resume", "state and memory"),
    ],
    "ringzero.engine.soft.opened": [("ensure", "the engine found")],
    "ringzero.engine.soft.x86.native": [("NativeEngine.__init__", "the engine linked in")],
    "ringzero.vm.build": [("Assembly.__init__", "the machine put together")],
    "ringzero.vm.machine": [("Machine.start", "started"), ("Machine.stop", "stopped")],
}
WATCH = """
import _frozen_importlib as importing, json, os, sys, time
ends = json.loads(sys.argv[1])
table, depth, loading = {}, 0, [0.0, 0.0]
def now():
    return time.process_time(), time.perf_counter()
last = now()
def end(stage):
    global last, loading
    here = now()
    row = table.setdefault(stage, [0.0, 0.0])
    for n in range(2):
        row[n] += here[n] - last[n] - loading[n]
    last, loading = here, [0.0, 0.0]
def watched(function, stage):
    def watching(*arguments, **named):
        try:
            return function(*arguments, **named)
        finally:
            end(stage)
    return watching
def watch(module):
    for path, stage in ends.get(module.__name__, ()):
        *outer, name = path.split(".")
        holder = getattr(module, outer[0]) if outer else module
        found = vars(holder)[name]
        method = isinstance(found, classmethod)
        function = watched(found.__func__ if method else found, stage)
        setattr(holder, name, classmethod(function) if method else function)
load = importing._find_and_load
def find_and_load(name, import_):
    global depth
    before, depth = now(), depth + 1
    try:
        module = load(name, import_)
    finally:
        depth -= 1
        if not depth:
            after = now()
            row = table.setdefault("modules", [0.0, 0.0])
            for n in range(2):
                row[n] += after[n] - before[n]
                loading[n] += after[n] - before[n]
    watch(module)
    if name == "ringzero.vm.guest.agent":
        answered = module.Agent._answered
        def hear(self, slot, answer):
            told = type(answer).__name__
            names = {"Adopted": "the guest has its identity", "Exited": "the command"}
            if told in names:
                end(names[told])
            answered(self, slot, answer)
        module.Agent._answered = hear
    return module
importing._find_and_load = find_and_load
table["Python itself"] = [time.process_time(), 0.0]
leave = os._exit
def tell(code):
    end("the rest")
    os.write(2, json.dumps(table).encode())
    leave(code)
os._exit = tell
sys.argv = ["ringzero", "run", "--engine", "soft", "--", "true"]
from ringzero.cli.entry import main
main()
"""


def one() -> dict[str, list[float]]:
    """Return CPU time and time by the clock of each stage, in seconds, of one start."""
    command = [sys.executable, "-c", WATCH, json.dumps(ENDS)]
    done = subprocess.run(command, capture_output=True, check=True, env=ENVIRONMENT)
    table: dict[str, list[float]] = json.loads(done.stderr)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    # What earlier starts leave is there, then, but for a template, which takes longer.
    one()
    runs = [one() for _ in range(arguments.rounds)]
    rows = {}
    for stage in runs[0]:
        cpu, wall = ([run[stage][n] * 1000 for run in runs if stage in run] for n in range(2))
        rows[stage] = {
            "cpu least": min(cpu),
            "cpu median": statistics.median(cpu),
            "clock least": min(wall),
            "clock median": statistics.median(wall),
        }
        shown = "  ".join(f"{name} {value:6.1f}" for name, value in rows[stage].items())
        print(f"{stage:40} {shown} ms", flush=True)
    print(f"{'all':40} cpu least {sum(row['cpu least'] for row in rows.values()):6.1f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
