"""Shared folders side by side with QEMU's: seconds, and ratios (above 1: ringzero is faster).

    python bench/share.py                    all rows
    python bench/share.py git                rows whose name contains one of the words
    python bench/share.py --json out.json --compare before.json
    python bench/share.py --virtiofsd build/bin/virtiofsd

Each side has a guest with the same kernel and initrd, and a copy of the folder of its own: ringzero
over virtio-fs and over 9p, QEMU's TCG over 9p (`-fsdev local`, messages of 512 KiB), and QEMU's TCG
over virtiofsd (vhost-user, `memory-backend-memfd`), the one that QEMU 7.2 brings or that of
cargo install, with the cache that it has by default. They run in turn; the best of `--rounds` runs
counts. The host has everything in its cache; "cold" rows begin with an empty cache in the guest.
Behind the seconds by the clock of a row are those of CPU that the side took, server and guest: on
a host with other work they say more.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.vm import guests  # noqa: E402
from tests.vm.qemu import QemuMachine  # noqa: E402

from ringzero.config.devices.share import ShareConfig  # noqa: E402 - after the path
from ringzero.config.machine import MachineConfig  # noqa: E402
from ringzero.errors import GuestError, RingzeroError  # noqa: E402
from ringzero.host.progress import Progress  # noqa: E402
from ringzero.image.micro import Recipe, ensure  # noqa: E402
from ringzero.units import MIB  # noqa: E402

MEMORY = 1024 * MIB
# The longest that a command may take, in seconds.
PATIENCE = 300
# The cloud kernel has no 9p.
IMAGE = Recipe("bench-share", kernel="linux-image-amd64", packages=("git", "tar", "coreutils"))
FILES, DIRECTORIES, ARCHIVED = 20_000, 200, 5_000
# Where the one of its own project is put by distributions, and QEMU's own of before its version 8.
VIRTIOFSD = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd")
_EMPTY = "sync; echo 3 >/proc/sys/vm/drop_caches"
_STATUS = "git -C /m/repository status --porcelain"
# What comes before, which is not timed, and what is.
ROWS = {
    "git status cold": (_EMPTY, _STATUS),
    "git status warm": (_STATUS, _STATUS),
    "untar 5,000 files": ("rm -rf /m/out; mkdir /m/out", "tar -xf /m/archive.tar -C /m/out"),
    "read 256 MiB": (_EMPTY, "dd if=/m/large of=/dev/null bs=1M 2>/dev/null"),
    "write 256 MiB": (
        "rm -f /m/new",
        "dd if=/dev/zero of=/m/new bs=1M count=256 conv=fsync 2>/dev/null",
    ),
    "find 20,000 files": (_EMPTY, "find /m/repository/tree -type f -size +1024k"),
}


def make_folder(place: Path, names: list[str]) -> None:
    """Make what the programs of the rows `names` work on."""
    repository = place / "repository"
    with_files = any("file" in name or "git" in name for name in names)
    with (place / "large").open("wb") as file:
        for number in range(256):
            file.write(bytes([number]) * MIB)
    if not with_files:
        return
    for number in range(FILES):
        path = repository / "tree" / f"directory-{number % DIRECTORIES}" / f"file-{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"line {number}\n" * 20)
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    # It would pack the objects while they are copied.
    git += ["-c", "gc.auto=0"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "all"], check=True)
    with tarfile.open(place / "archive.tar", "w") as archive:
        for number in range(ARCHIVED):
            name = f"directory-{number % 50}/file-{number}"
            archive.add(repository / "tree" / "directory-0" / "file-0.txt", name)


@contextlib.contextmanager
def ringzero(folder: Path, base: MachineConfig, transport: str = "virtiofs") -> Iterator[Any]:
    """Boot our own guest with the folder at /m."""
    from ringzero.records import replace

    config = replace(base, devices=(ShareConfig(folder, "/m", transport=transport),))
    with guests.build("ringzero", config) as machine:
        yield machine


def ringzero_9p(folder: Path, base: MachineConfig) -> contextlib.AbstractContextManager[Any]:
    """Boot our own guest with the folder at /m by 9p."""
    return ringzero(folder, base, "9p")


@contextlib.contextmanager
def ninep(folder: Path, base: MachineConfig) -> Iterator[Any]:
    """Boot QEMU's guest with the folder at /m by 9p."""
    machine = QemuMachine(base)
    machine.extra = [
        *("-fsdev", f"local,id=f,path={folder},security_model=none"),
        *("-device", "virtio-9p-device,fsdev=f,mount_tag=share"),
    ]
    with machine:
        mount = "mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288 share /m"
        run(machine, f"modprobe -a 9pnet_virtio 9p; mkdir /m; {mount}")
        yield machine


def daemon_words(program: Path, socket: Path, folder: Path) -> list[str]:
    """Return how a virtiofsd is called; of both the sandbox is one that a container allows."""
    told = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    words = [str(program), f"--socket-path={socket}"]
    if "--shared-dir" in told:
        return [*words, f"--shared-dir={folder}", "--sandbox=chroot"]
    return [*words, "-f", "-o", f"source={folder},sandbox=chroot"]


@contextlib.contextmanager
def virtiofsd(program: Path, folder: Path, base: MachineConfig) -> Iterator[Any]:
    """Boot QEMU's guest with the folder at /m by the virtiofsd that `program` is."""
    with tempfile.TemporaryDirectory(prefix="rzv") as place:
        path, log = Path(place) / "s", Path(place) / "log"
        with log.open("wb") as output:
            command = daemon_words(program, path, folder)
            daemon = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            end = time.monotonic() + PATIENCE
            while not path.exists():
                if daemon.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"virtiofsd: {log.read_text()[-300:]}")
                time.sleep(0.02)
            machine = QemuMachine(base)
            size = base.memory >> 20
            machine.extra = [
                *("-object", f"memory-backend-memfd,id=mem,size={size}M,share=on"),
                *("-machine", "memory-backend=mem", "-chardev", f"socket,id=fs,path={path}"),
                # Programs behind vhost-user know virtio of version 1 alone.
                *("-global", "virtio-mmio.force-legacy=false"),
                *("-device", "vhost-user-fs-device,chardev=fs,tag=share"),
            ]
            with machine:
                run(machine, "modprobe virtiofs; mkdir /m; mount -t virtiofs share /m")
                machine.served_by = daemon.pid
                yield machine
        finally:
            daemon.kill()
            daemon.wait()


Side = Callable[[Path, MachineConfig], contextlib.AbstractContextManager[Any]]
SIDES: dict[str, Side] = {"ringzero": ringzero, "ringzero-9p": ringzero_9p, "qemu": ninep}


def found_virtiofsd(wanted: Path | None) -> Path | None:
    """Return the virtiofsd that is to be measured, None where there is none."""
    places = [wanted] if wanted is not None else [Path(place) for place in VIRTIOFSD]
    return next((place for place in places if place.exists()), None)


def run(machine: Any, command: str) -> bytes:
    """Run a command in a guest; return what it printed. Raises RuntimeError when it fails."""
    try:
        status, printed, complaint = machine.run(["sh", "-c", command], timeout=PATIENCE)
    except GuestError as fault:
        raise RuntimeError(f"{fault}: {machine.serial_text[-2000:]}") from fault
    if status is None:
        raise RuntimeError(f"{command!r} takes more than {PATIENCE} s")
    if status != 0:
        raise RuntimeError(f"{command!r} failed: {complaint.decode(errors='replace')}")
    return printed


def cpu_of(machine: Any) -> float:
    """Return the seconds of CPU that a guest and its server have taken so far."""
    process = getattr(machine, "process", None)
    if process is None:
        return time.process_time()
    pids = [process.pid, getattr(machine, "served_by", None)]
    return sum(_spent(pid) for pid in pids if pid is not None)


def _spent(pid: int) -> float:
    """Return the seconds of CPU that a process has taken (proc(5), utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(chosen: list[str], rounds: int, boots: dict[str, Side]) -> dict[str, dict[str, float]]:
    """Return the rows, two of each name: the second is of CPU.

    Raises RuntimeError where guests print different things.
    """
    names = [name for name in ROWS if not chosen or any(word in name for word in chosen)]
    image = ensure(IMAGE, progress=Progress())
    base = MachineConfig.create(
        memory=MEMORY,
        engine="soft",
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        agent=True,
    )
    sides = list(boots)
    rows = {row: dict.fromkeys(sides, math.inf) for name in names for row in (name, f"{name}, CPU")}
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rzb")))
        (place / sides[0]).mkdir()
        make_folder(place / sides[0], names)
        for side in sides[1:]:
            shutil.copytree(place / sides[0], place / side, symlinks=True)
        machines = {side: stack.enter_context(boots[side](place / side, base)) for side in sides}
        for side, machine in machines.items():
            if not machine.agent.wait_ready(PATIENCE):
                raise RuntimeError(f"{side}: the guest did not come up")
            # The index has the numbers of the inodes of another folder.
            if any("git" in name for name in names):
                run(machine, f"git config --global --add safe.directory '*'; {_STATUS}")
        for name in names:
            before, command = ROWS[name]
            printed = {}
            for _ in range(rounds):
                for side, machine in machines.items():
                    run(machine, before)
                    began, spent = time.perf_counter(), cpu_of(machine)
                    printed[side] = run(machine, command)
                    took = {name: time.perf_counter() - began}
                    took[f"{name}, CPU"] = cpu_of(machine) - spent
                    for row, seconds in took.items():
                        rows[row][side] = min(rows[row][side], seconds)
            if len(set(printed.values())) > 1:
                raise RuntimeError(f"{name}: the guests print different things")
            for row in (name, f"{name}, CPU"):
                print(show(row, rows[row]), flush=True)
    return rows


def show(name: str, row: dict[str, float], before: dict[str, float] | None = None) -> str:
    """Return a row as text: all sides, how many times faster the first one is, the change."""
    first, ours = next(iter(row.items()))
    line = f"{name:24}{first} {ours:.3f} s"
    for side, theirs in row.items():
        if side != first:
            line += f"   {side} {theirs:.3f} s, {theirs / ours:.2f}"
    if before is not None and first in before:
        line += f"   before {before[first]:.3f} (x {ours / before[first]:.2f})"
    return line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="rows whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--sides",
        type=lambda text: text.split(","),
        default=[*SIDES, "virtiofsd"],
        help="some of ringzero,ringzero-9p,qemu,virtiofsd; all by default",
    )
    parser.add_argument("--virtiofsd", type=Path, help="the program (else where it is installed)")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--compare", type=Path, help="an earlier --json file")
    options = parser.parse_args()
    program = found_virtiofsd(options.virtiofsd)
    boots = dict(SIDES)
    if program is not None:
        boots["virtiofsd"] = functools.partial(virtiofsd, program)
    unknown = set(options.sides) - {*SIDES, "virtiofsd"}
    if unknown:
        parser.error(f"no side is called {', '.join(sorted(unknown))}")
    boots = {side: boot for side, boot in boots.items() if side in options.sides}
    if "virtiofsd" in options.sides and program is None:
        print("bench/share.py: without virtiofsd, which is not installed (cargo install virtiofsd)")
    named = [name for name in ROWS if not options.words or any(w in name for w in options.words)]
    few = resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2 * FILES
    if "virtiofsd" in boots and few and any("git" in n or "find" in n for n in named):
        # It has a descriptor for each file that its guest knows.
        print(f"bench/share.py: without virtiofsd, which wants `ulimit -Hn` of {2 * FILES} here")
        del boots["virtiofsd"]
    reason = guests.missing("qemu") if {"qemu", "virtiofsd"} & set(boots) else ""
    if reason:
        print(f"bench/share.py: {reason}")
        return 0
    try:
        rows = measure(options.words, options.rounds, boots)
    except (RingzeroError, RuntimeError, subprocess.SubprocessError) as fault:
        print(f"bench/share.py: {fault}", file=sys.stderr)
        return 1
    before = json.loads(options.compare.read_text()) if options.compare else {}
    print()
    for name, row in rows.items():
        print(show(name, row, before.get(name)))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
