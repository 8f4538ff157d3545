"""Start to guest init, and work in the guest, beside QEMU's TCG; for `make bench`.

All machines get the same kernel, initrd and command line. They take turns, so
that what else the host does falls on all alike; the best of three counts.
Results go to bench-results/boot.json.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ringzero.errors import HostError

pytestmark = [pytest.mark.speed, pytest.mark.boot, pytest.mark.engine, pytest.mark.peer,
              pytest.mark.timeout(1800)]  # fmt: skip
RESULTS = Path(__file__).parents[2] / "bench-results" / "boot.json"
ROUNDS = 3
MEMORY = 512
PATIENCE = 300
COMMAND_LINE = "console=ttyS0 quiet mitigations=off no_timer_check reboot=t panic=-1 tsc=reliable"
# What the guest does, by its own clock (which is the host's).
WORK = {
    "sha256sum of 64 MiB": "head -c 67108864 /dev/zero | sha256sum",
    "gzip of 16 MiB": "head -c 16777216 /bin/busybox /bin/busybox /dev/zero | gzip | wc -c",
    "awk loop": "awk 'BEGIN { for (i = 0; i < 1000000; i++) s += i % 7; print s }'",
    "sort of 200k lines": "seq 200000 | awk '{ print ($1 * 7919) % 200003 }' | sort -n | tail -n 1",
}
QEMU = shutil.which("qemu-system-x86_64")
QEMU_MACHINES = {
    "qemu pc": ["-M", "pc"],
    "qemu microvm": ["-M", "microvm,x-option-roms=off,isa-serial=on,rtc=on"],
}


def init_script(work):
    lines = ["#!/bin/busybox sh", "/bin/busybox --install -s /bin", "mount -t proc proc /proc",
             "echo INIT"]  # fmt: skip
    for number, command in enumerate(work):
        lines += [f"( {command} ) >/dev/null 2>&1", "a=$(cut -d' ' -f1 /proc/uptime)",
                  f"( {command} ) >/dev/null 2>&1", "b=$(cut -d' ' -f1 /proc/uptime)",
                  f"echo WORK {number} $a $b"]  # fmt: skip
    return "\n".join([*lines, "reboot -f", ""]).encode()


def make_initrd(path, image, work=()):
    """The default image's own initrd with another /init behind it: the last one counts."""
    from ringzero.image.rootfs import Rootfs

    tree = Rootfs()
    tree.add_directory("/proc")
    tree.add_file("/init", init_script(work), mode=0o755)
    buffer = io.BytesIO()
    tree.write_cpio(buffer)
    path.write_bytes(image.initrd.read_bytes() + buffer.getvalue())
    return path


@pytest.fixture(scope="module")
def image():
    from ringzero.image.micro import ensure

    try:
        return ensure()
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")


@pytest.fixture(scope="module")
def machines(image, tmp_path_factory):
    """Return a function from an initrd to {name: (command, environment changes)}."""
    cold = tmp_path_factory.mktemp("cold")

    def commands(initrd):
        files = {"kernel": str(image.kernel), "initrd": str(initrd)}
        ours = [sys.executable, "-m", "ringzero", "run", "--engine", "soft",
                "--kernel", files["kernel"], "--initrd", files["initrd"],
                "--append", COMMAND_LINE, "--memory", f"{MEMORY}M"]  # fmt: skip
        result = {"ringzero cold": (ours, cold), "ringzero warm": (ours, None)}
        if QEMU:
            for name, kind in QEMU_MACHINES.items():
                result[name] = (
                    [QEMU, "-accel", "tcg", *kind, "-cpu", "max", "-m", str(MEMORY), "-nodefaults",
                     "-display", "none", "-no-reboot", "-serial", "stdio",
                     "-kernel", files["kernel"], "-initrd", files["initrd"],
                     "-append", COMMAND_LINE], None)  # fmt: skip
        return result

    return commands


def forget_translations(directory):
    """A cache as the real one, but without translations."""
    from ringzero.settings import CACHE_DIR

    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for entry in CACHE_DIR.get().iterdir():
        if entry.name != "translations":
            (directory / entry.name).symlink_to(entry)


def measure(command, cold):
    """Return (seconds to INIT, CPU seconds of the whole run, output)."""
    environment = dict(os.environ)
    if cold is not None:
        forget_translations(cold)
        environment["RINGZERO_CACHE_DIR"] = str(cold)
    began = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        to_init, output = None, b""
        while chunk := os.read(process.stdout.fileno(), 65536):
            output += chunk
            if to_init is None and b"INIT" in output:
                to_init = time.monotonic() - began
            assert time.monotonic() - began < PATIENCE
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
    assert to_init is not None, output.decode(errors="replace")[-2000:]
    return to_init, usage.ru_utime + usage.ru_stime, output.decode(errors="replace")


def record(name, values):
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(known | {name: values}, indent=2) + "\n")


def test_start_to_init(image, machines, tmp_path):
    commands = machines(make_initrd(tmp_path / "initrd", image))
    times = {name: [] for name in commands}
    measure(*commands["ringzero warm"])
    for _ in range(ROUNDS):
        for name, (command, cold) in commands.items():
            times[name].append(measure(command, cold)[:2])
    best = {
        name: {"seconds": min(t for t, _ in rows), "cpu_seconds": min(c for _, c in rows)}
        for name, rows in times.items()
    }
    ours = best["ringzero warm"]["seconds"]
    print()
    for name, row in best.items():
        row["ratio_to_ours_warm"] = row["seconds"] / ours
        print(f"{name:16} {row['seconds']:6.2f} s to init  {row['ratio_to_ours_warm']:5.2f} x"
              f"  {row['cpu_seconds']:6.2f} s CPU")  # fmt: skip
    record("start_to_init", best)


def test_work_in_the_guest(image, machines, tmp_path):
    commands = machines(make_initrd(tmp_path / "initrd", image, WORK.values()))
    seconds = {}
    for name in ("ringzero warm", "qemu pc"):
        if name not in commands:
            continue
        _, _, output = measure(*commands[name])
        rows = re.findall(r"WORK (\d+) ([\d.]+) ([\d.]+)", output)
        assert len(rows) == len(WORK), output[-2000:]
        seconds[name] = {
            work: float(end) - float(start)
            for work, (_, start, end) in zip(WORK, rows, strict=True)
        }
    print()
    for work in WORK:
        row = {name: times[work] for name, times in seconds.items()}
        ratio = row["ringzero warm"] / row["qemu pc"] if "qemu pc" in row else 0
        print(f"{work:22}", *(f"{n} {t:6.2f} s " for n, t in row.items()), f"ours/qemu {ratio:.2f}")
    record("work", seconds)
