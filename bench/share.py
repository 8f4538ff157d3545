"""Shared folders side by side with QEMU's: seconds, and ratios (above 1: ringzero is faster).

    python bench/share.py                    all rows
    python bench/share.py git                rows whose name contains one of the words
    python bench/share.py --json out.json --compare before.json

Each side has a guest with the same kernel and initrd, and a copy of the folder of its own: ringzero
over virtio-fs, QEMU's TCG over 9p (`-fsdev local`, messages of 512 KiB),
and QEMU over virtiofsd, where that is installed. They run in turn; the best of `--rounds` runs
counts. The host has everything in its cache; "cold" rows begin with an empty cache in the guest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
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
PATIENCE = 300
# The cloud kernel has no 9p.
IMAGE = Recipe("bench-share", kernel="linux-image-amd64", packages=("git", "tar", "coreutils"))
FILES, DIRECTORIES, ARCHIVED = 20_000, 200, 5_000
VIRTIOFSD = next(
    (p for p in ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd") if Path(p).exists()), None
)
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
    "find 20,000 files": (_EMPTY, "find /m/repository/tree -type f -size +1M"),
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
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "all"], check=True)
    with tarfile.open(place / "archive.tar", "w") as archive:
        for number in range(ARCHIVED):
            name = f"directory-{number % 50}/file-{number}"
            archive.add(repository / "tree" / "directory-0" / "file-0.txt", name)


@contextlib.contextmanager
def ringzero(folder: Path, base: MachineConfig) -> Iterator[Any]:
    """Boot our own guest with the folder at /m."""
    from ringzero.records import replace

    config = replace(base, devices=(ShareConfig(folder, "/m"),))
    with guests.build("ringzero", config) as machine:
        yield machine


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


@contextlib.contextmanager
def virtiofsd(folder: Path, base: MachineConfig) -> Iterator[Any]:
    """Boot QEMU's guest with the folder at /m by virtiofsd."""
    with tempfile.TemporaryDirectory(prefix="rzv") as place:
        path = f"{place}/s"
        command = [str(VIRTIOFSD), f"--socket-path={path}", "-o", f"source={folder}"]
        log = Path(place) / "log"
        with log.open("wb") as output:
            daemon = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            for _ in range(200):
                if Path(path).exists() or daemon.poll() is not None:
                    break
                time.sleep(0.02)
            if not Path(path).exists():
                raise RuntimeError(f"virtiofsd: {log.read_text()[-300:]}")
            machine = QemuMachine(base)
            size = base.memory >> 20
            machine.extra = [
                *("-object", f"memory-backend-memfd,id=mem,size={size}M,share=on"),
                *("-machine", "memory-backend=mem", "-chardev", f"socket,id=fs,path={path}"),
                *("-device", "vhost-user-fs-device,chardev=fs,tag=share"),
            ]
            with machine:
                run(machine, "modprobe virtiofs; mkdir /m; mount -t virtiofs share /m")
                yield machine
        finally:
            daemon.kill()
            daemon.wait()


SIDES = {"ringzero": ringzero, "qemu": ninep, "virtiofsd": virtiofsd}


def run(machine: Any, command: str) -> bytes:
    """Run a command in a guest; return what it printed. Raises RuntimeError when it fails."""
    try:
        status, printed, complaint = machine.run(["sh", "-c", command], timeout=PATIENCE)
    except GuestError as fault:
        raise RuntimeError(f"{fault}: {machine.serial_text[-2000:]}") from fault
    if status != 0:
        raise RuntimeError(f"{command!r} failed: {complaint.decode(errors='replace')}")
    return printed


def measure(chosen: list[str], rounds: int, sides: list[str]) -> dict[str, dict[str, float]]:
    """Return the rows. Raises RuntimeError where guests print different things."""
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
    rows = {name: dict.fromkeys(sides, math.inf) for name in names}
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rzb")))
        (place / sides[0]).mkdir()
        make_folder(place / sides[0], names)
        for side in sides[1:]:
            shutil.copytree(place / sides[0], place / side, symlinks=True)
        machines = {side: stack.enter_context(SIDES[side](place / side, base)) for side in sides}
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
                    began = time.perf_counter()
                    printed[side] = run(machine, command)
                    rows[name][side] = min(rows[name][side], time.perf_counter() - began)
            if len(set(printed.values())) > 1:
                raise RuntimeError(f"{name}: the guests print different things")
            print(show(name, rows[name]), flush=True)
    return rows


def show(name: str, row: dict[str, float], before: dict[str, float] | None = None) -> str:
    """Return a row as text: all sides, how many times faster ringzero is, the change."""
    ours = row["ringzero"]
    line = f"{name:20}{ours:9.3f} s"
    for side, theirs in row.items():
        if side != "ringzero":
            line += f"   {side} {theirs:.3f} s, {theirs / ours:.2f}"
    if before is not None:
        line += f"   before {before['ringzero']:.3f} (x {ours / before['ringzero']:.2f})"
    return line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="rows whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sides", default=",".join(SIDES), help="ringzero,qemu,virtiofsd")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--compare", type=Path, help="an earlier --json file")
    options = parser.parse_args()
    sides = [side for side in options.sides.split(",") if side != "virtiofsd" or VIRTIOFSD]
    reason = guests.missing("qemu") if "qemu" in sides else ""
    if reason:
        print(f"bench/share.py: {reason}")
        return 0
    try:
        rows = measure(options.words, options.rounds, sides)
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
