"""Machines side by side with QEMU's TCG: a named table of ratios (above 1: ringzero is faster).

    python bench/guest.py                    all rows
    python bench/guest.py start sort         rows whose name contains one of the words
    python bench/guest.py plain              those of the plain command line
    python bench/guest.py --limits           beside them User-Mode Linux, and the host itself
    python bench/guest.py --json out.json --compare before.json

Both sides boot the same kernel, initrd and command line and run the same work,
in turn, on one CPU; the best of `--rounds` runs counts. "start" rows
go from the start of the process to the end of `true` in the guest: warm with what
earlier runs left in the cache, cold without the kept translations and the unpacked kernel (the
engine itself stays compiled). QEMU is told the TSC's frequency, as ringzero tells its guest.
Programs run twice: with the default image's command line, and as "plain ..." with one that
switches nothing off, as a user's own guest has it. "two ..." rows are others, on two virtual
CPUs (QEMU: `thread=multi`). With --limits the plain rows also have the time of Debian's
User-Mode Linux, and that of the same programs on one CPU of the host, without any machine: the
limit. "peak memory" is that of the host process over all programs,
without the guest's RAM.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.vm import guests, served  # noqa: E402
from tests.vm.peak_memory import PeakMemory  # noqa: E402

from ringzero.config.machine import MachineConfig  # noqa: E402 - after the path
from ringzero.errors import GuestError, RingzeroError  # noqa: E402
from ringzero.host.progress import Progress  # noqa: E402
from ringzero.image.micro import MICRO, BootFiles, ensure  # noqa: E402
from ringzero.records import replace  # noqa: E402
from ringzero.settings import CACHE_DIR  # noqa: E402
from ringzero.units import MIB  # noqa: E402

MEMORY = 1024 * MIB
KINDS = ("ringzero", "qemu")
UML, NATIVE = "uml", "native"
PEAK_ROW = "peak memory"
# Seconds for one start or one program: twenty times what the slowest takes.
PATIENCE = 120
# What a cold start may still find in the cache: it is no trace of an earlier guest.
KEPT_WHEN_COLD = ("images", "engine", "objects")

# What the programs need beyond the tests' image.
IMAGE = replace(
    guests.TOOLS,
    name="bench",
    packages=(*guests.TOOLS.packages, "bzip2", "zstd", "tcc", "libc6-dev", "luajit", "git"),
)
# Rows by their prefix, and the command line of their guests; None is the image's own.
PLAIN, TWO = "plain ", "two "
_SWITCHES_NOTHING_OFF = "console=ttyS0 quiet panic=-1 reboot=a ringzero.agent"
COMMAND_LINES = {"": None, PLAIN: _SWITCHES_NOTHING_OFF, TWO: _SWITCHES_NOTHING_OFF}
MERSENNE = f"{(1 << 1279) - 1:X}"

# Each prints something, which both sides must print alike.
PROGRAMS = {
    "python loop": "python3 -c 'print(sum(i * i % 7 for i in range(1000000)))'",
    "python json": (
        "python3 -c 'import json; d = [{str(i): [i, i / 3]} for i in range(20000)];"
        " print(len(json.dumps(json.loads(json.dumps(d)))))'"
    ),
    "perl regex": (
        "perl -e '$s = q(the quick brown fox ) x 20000; $n = 0;"
        " $n++ while $s =~ /\\b(\\w)\\w*(\\w)\\b/g; print qq($n\\n)'"
    ),
    "openssl sha256": "head -c 30000000 /dev/zero | openssl sha256 -r",
    "openssl aes": (
        "head -c 8000000 /dev/zero | openssl enc -aes-128-cbc -K 00 -iv 00 2>/dev/null | md5sum"
    ),
    "sqlite": (
        "sqlite3 :memory: 'create table t(a, b); with recursive c(x) as (select 1 union all"
        " select x + 1 from c where x < 200000) insert into t select x, x * 7919 % 10007 from c;"
        " select sum(a), count(distinct b) from t where b > 500'"
    ),
    "xz": "seq 150000 | xz -1 | md5sum",
    "gzip": "seq 600000 | gzip -n | gzip -dc | md5sum",
    "gawk": "seq 400000 | gawk '{ s += $1 % 13; w[$1 % 97]++ } END { print s, length(w) }'",
    "sort": "seq 200000 | rev | LC_ALL=C sort | md5sum",
    "shell forks": "i=0; while [ $i -lt 100 ]; do /usr/bin/true; i=$((i + 1)); done; echo $i",
    "dpkg": "for i in 1 2 3 4 5; do dpkg -l; done | md5sum",
    "openssl prime": f"openssl prime -checks 40 -hex {MERSENNE} | md5sum",
    "openssl sha512": "head -c 30000000 /dev/zero | openssl sha512 -r",
    "bzip2": "seq 100000 | bzip2 | md5sum",
    "zstd": "seq 400000 | zstd -6 -q -c | md5sum",
    "compiler": (
        """seq 8000 | awk '{ print "int f" $1 "(int a, int b) { int i, s = a;","""
        """ "for (i = 0; i < b; i++) s = s * " $1 " + (i ^ a); return s; }" }' > /tmp/f.c;"""
        " tcc -c -o /tmp/f.o /tmp/f.c; md5sum < /tmp/f.o"
    ),
    "luajit": (
        "luajit -e 'local t = {} for i = 1, 2000000 do t[i % 1000] = (t[i % 1000] or 0) + i % 7 end"
        " print(t[13])'"
    ),
    "git": (
        "rm -rf /tmp/r; git init -q /tmp/r; cd /tmp/r; cp -r /usr/share/perl5 .; git add .;"
        " export GIT_AUTHOR_DATE='2020-01-01T00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00Z';"
        " git -c user.name=n -c user.email=e commit -qm m; git gc -q; git rev-parse HEAD"
    ),
    "find": "for i in 1 2 3; do find /usr -type f; done | sort | md5sum",
    "system calls": "perl -e 'getppid for 1 .. 300000; print 1'",
    "page faults": "perl -e 'for (1 .. 4) { my $s = q(x) x 60000000; print length $s }'",
    "forks": "perl -e 'for (1 .. 300) { fork or exit; wait } print 1'",
    "pipes": (
        "perl -e 'pipe A, B; pipe C, D; if (!fork) { for (1 .. 8000) { sysread A, $x, 1;"
        " syswrite D, q(x) } exit } for (1 .. 8000) { syswrite B, q(x); sysread C, $x, 1 } print 1'"
    ),
}

BUSY = "awk 'BEGIN { for (i = 0; i < 800000; i++) s += i % 7; print s }'"
ONE_BUSY, TWO_BUSY = "busy process", "busy processes"
COMPILED = (
    """seq 3000 | awk '{ print "int f" $1 "(int a, int b) { int i, s = a;","""
    """ "for (i = 0; i < b; i++) s = s * " $1 " + (i ^ a); return s; }" }' > /tmp/f.c;"""
    " seq 8 | xargs -P 2 -I N tcc -c -o /tmp/fN.o /tmp/f.c; cat /tmp/f?.o | md5sum"
)
PING_PONG = """python3 -c '
import threading
a, b = threading.Lock(), threading.Lock()
b.acquire()
def pong():
    for _ in range(20000):
        b.acquire()
        a.release()
t = threading.Thread(target=pong)
t.start()
for _ in range(20000):
    a.acquire()
    b.release()
t.join()
print(1)'"""
# On two virtual CPUs.
PAIRS = {
    ONE_BUSY: BUSY,
    TWO_BUSY: f"{BUSY} & {BUSY} & wait",
    "xz -T2": "seq 400000 | xz -T2 -1 --block-size=262144 | md5sum",
    "compilers": COMPILED,
    "lock ping-pong": PING_PONG,
    "pipe ping-pong": PROGRAMS["pipes"],
    "forks": "for i in 1 2; do perl -e 'for (1 .. 99) { fork or exit; wait }' & done; wait; echo 1",
}
ROWS = {"": PROGRAMS, PLAIN: PROGRAMS, TWO: PAIRS}


def config(
    image: BootFiles, memory: int = MEMORY, command_line: str | None = None, cpus: int = 1
) -> MachineConfig:
    """Return the machine that both sides run; `command_line` is by default the image's."""
    return MachineConfig.create(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=command_line or image.command_line,
        memory=memory,
        cpus=cpus,
        agent=True,
    )


def start_ringzero(cache: Path) -> float:
    """Return the seconds of `ringzero run -- true`, as a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "RINGZERO_CACHE_DIR": str(cache)}
    # An installed program has its bytecode.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "ringzero", "run", "--memory", "256M", "--", "true"],
        env=environment,
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=PATIENCE,
    )
    return time.perf_counter() - began


def start_qemu(image: BootFiles) -> float:
    """Return the seconds from the start of QEMU's process to the end of `true`."""
    began = time.perf_counter()
    with guests.build("qemu", config(image, 256 * MIB)) as machine:
        run(machine, "qemu", "true")
        return time.perf_counter() - began


def cold_cache(place: Path) -> Path:
    """Make a cache in `place` that holds only what a cold start may find; return it."""
    cache = place / "cold"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True)
    for name in KEPT_WHEN_COLD:
        if (CACHE_DIR.get() / name).exists():
            (cache / name).symlink_to(CACHE_DIR.get() / name)
    return cache


def run(machine: Any, kind: str, command: str) -> bytes:
    """Run a command in a guest; return what it printed. Raises RuntimeError when it fails."""
    try:
        status, printed, complaint = machine.run(command, timeout=PATIENCE)
    except GuestError as fault:
        raise RuntimeError(f"{kind}: {fault}: {machine.serial_text[-2000:]}") from fault
    if status != 0:
        raise RuntimeError(f"{kind}: {command!r} failed: {complaint.decode(errors='replace')}")
    return printed


def time_program(machine: Any, kind: str, command: str) -> tuple[float, float, bytes]:
    """Run one program; return its seconds, those of CPU time, and what it printed."""
    began, used = time.perf_counter(), cpu_seconds(process_of(machine))
    printed = run(machine, kind, command)
    return time.perf_counter() - began, cpu_seconds(process_of(machine)) - used, printed


def cpu_seconds(process: int) -> float:
    """Return the CPU time that a process has taken so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bench_starts(chosen: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Return the rows about starting."""
    names = [name for name in ("start warm", "start cold") if matches(name, chosen)]
    rows: dict[str, dict[str, float]] = {}
    if not names:
        return rows
    image = ensure(MICRO, progress=Progress())
    start_ringzero(CACHE_DIR.get())
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            ours, theirs = math.inf, math.inf
            for _ in range(rounds):
                warm = name == "start warm"
                cache = CACHE_DIR.get() if warm else cold_cache(Path(place))
                ours = min(ours, start_ringzero(cache))
                theirs = min(theirs, start_qemu(image))
            rows[name] = {"ringzero": ours, "qemu": theirs}
    return rows


def bench_limits(names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Return the seconds of programs in User-Mode Linux and on the host, by kind.

    Says which of the two there is not, and why.
    """
    rows: dict[str, dict[str, float]] = {name: {} for name in names}
    image = ensure(IMAGE, progress=Progress())
    kinds = {
        UML: (served.missing_uml, lambda: served.user_mode_linux(image.initrd, MEMORY)),
        NATIVE: (served.missing_native, lambda: served.native(image.initrd)),
    }
    for kind, (missing, make) in kinds.items():
        reason = missing()
        if reason:
            print(f"bench/guest.py: no column {reason}")
            continue
        with make() as machine:
            if not machine.wait_ready(PATIENCE):
                raise RuntimeError(f"{kind}: it did not come up")
            for name in names:
                for _ in range(rounds):
                    began = time.perf_counter()
                    run(machine, kind, PROGRAMS[name])
                    taken = time.perf_counter() - began
                    rows[name][kind] = min(rows[name].get(kind, math.inf), taken)
    return rows


def bench_programs(prefix: str, chosen: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Return the rows about programs, and that about memory, for one of COMMAND_LINES.

    Raises RuntimeError where the two print different things.
    """
    programs = ROWS[prefix]
    names = [name for name in programs if matches(prefix + name, chosen)]
    rows: dict[str, dict[str, float]] = {}
    if not names:
        return rows
    cpus = 2 if prefix == TWO else 1
    machine_of = config(ensure(IMAGE, progress=Progress()), MEMORY, COMMAND_LINES[prefix], cpus)
    with contextlib.ExitStack() as stack:
        built = {kind: guests.build(kind, machine_of) for kind in KINDS}
        if prefix:
            # Its own best: a model of AMD's, for which Linux does not isolate page tables.
            built["qemu"].cpu = "max,-cx16"
        machines = {kind: stack.enter_context(machine) for kind, machine in built.items()}
        peaks = {
            kind: stack.enter_context(PeakMemory(process_of(machine), MEMORY))
            for kind, machine in machines.items()
        }
        for kind, machine in machines.items():
            if not machine.agent.wait_ready(PATIENCE):
                raise RuntimeError(f"{kind}: the guest did not come up")
        for name in names:
            row = rows[prefix + name] = dict.fromkeys((*KINDS, *map(cpu_of, KINDS)), math.inf)
            printed = {}
            for _ in range(rounds):
                for kind, machine in machines.items():
                    taken, used, printed[kind] = time_program(machine, kind, programs[name])
                    row[kind] = min(row[kind], taken)
                    row[cpu_of(kind)] = min(row[cpu_of(kind)], used)
            if printed["ringzero"] != printed["qemu"]:
                raise RuntimeError(f"{name}: the guests print different things")
            print(show(prefix + name, row), flush=True)
    rows[prefix + PEAK_ROW] = {kind: peak.bytes / MIB for kind, peak in peaks.items()}
    return rows


def cpu_of(kind: str) -> str:
    """Return the member of a row that holds CPU time."""
    return f"{kind} cpu"


def process_of(machine: Any) -> int:
    """Return the id of the process that runs a machine of `guests`."""
    process = getattr(machine, "process", None)
    return os.getpid() if process is None else process.pid


def matches(name: str, words: list[str]) -> bool:
    """Tell whether the row `name` was asked for."""
    return not words or any(word in name for word in words)


def show(name: str, row: dict[str, float], before: dict[str, float] | None = None) -> str:
    """Return a row as text: both sides, how many times better ringzero is, the change."""
    unit, digits = ("MiB", 0) if name.endswith(PEAK_ROW) else ("s", 3)
    ours, theirs = row["ringzero"], row["qemu"]
    line = f"{name:22}{ours:10.{digits}f}{theirs:10.{digits}f} {unit:3}{theirs / ours:6.2f}"
    if before is not None:
        line += f"   before {before['ringzero']:.{digits}f} (x {ours / before['ringzero']:.2f})"
    line += "".join(f"   {kind} {row[kind]:.{digits}f}" for kind in (UML, NATIVE) if kind in row)
    return line


def show_scaling(rows: dict[str, dict[str, float]]) -> None:
    """Print how much more two busy processes get done on two virtual CPUs than one.

    By the clock, which is less on a host whose CPUs are busy; the CPU time tells what is lost
    in any case.
    """
    if not {TWO + ONE_BUSY, TWO + TWO_BUSY} <= rows.keys():
        return
    one, two = rows[TWO + ONE_BUSY], rows[TWO + TWO_BUSY]
    for kind in KINDS:
        clock, used = (2 * one[key] / two[key] for key in (kind, cpu_of(kind)))
        print(f"{kind}: two busy processes get {clock:.2f} times one's work done,", end=" ")
        print(f"in {1 / used:.2f} times its CPU time for each")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="rows whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limits", action="store_true", help="also User-Mode Linux and the host")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--compare", type=Path, help="an earlier --json file")
    options = parser.parse_args()
    reason = guests.missing("qemu")
    if reason:
        print(f"bench/guest.py: {reason}")
        return 0
    try:
        rows = bench_starts(options.words, options.rounds)
        for prefix in COMMAND_LINES:
            rows |= bench_programs(prefix, options.words, options.rounds)
        if options.limits:
            names = [name for name in PROGRAMS if PLAIN + name in rows]
            for name, limits in bench_limits(names, options.rounds).items():
                rows[PLAIN + name] |= limits
    except (RingzeroError, RuntimeError, subprocess.SubprocessError) as fault:
        print(f"bench/guest.py: {fault}", file=sys.stderr)
        return 1
    before = json.loads(options.compare.read_text()) if options.compare else {}
    print(f"\n{'':22}{'ringzero':>10}{'QEMU':>10}{'ratio':>8}")
    for name, row in rows.items():
        print(show(name, row, before.get(name)))
    for prefix in COMMAND_LINES:
        ratios = [
            row["qemu"] / row["ringzero"]
            for name, row in rows.items()
            if name in {prefix + program for program in ROWS[prefix]}
        ]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            print(f"{prefix}geometric mean of {len(ratios)} programs: {mean:.2f} of QEMU's speed")
    show_scaling(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
