"""ringzero's KVM engine beside `qemu-system-x86_64 -accel kvm -M microvm`, on one host.

    python3 tests/rigs/bench_kvm.py [--rounds N] [--json FILE]

Both start the same kernel and initrd as a new process; the guest says when init
runs, then times reads of a register of its serial port and 4 KiB disk reads by
its own clock. Prints a table with ratios (above 1: ringzero takes longer), and
what ringzero's exits were. All files lie in a temporary directory, the cache
too. Needs a real KVM, the micro image in the cache, and QEMU. Run by
`make bench-kvm` in the rig.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ringzero.image import micro
from ringzero.image.rootfs import Rootfs

PORTS, READS = 4000, 1000
# iopl(3); PORTS times: in al, 0x3ff (the scratch register of COM1); exit
_CODE = (
    bytes.fromhex("b8ac000000 bf03000000 0f05 85c0 7511 b9")
    + struct.pack("<I", PORTS)
    + bytes.fromhex("baff030000 ec ffc9 75fb 31c0 89c7 b83c000000 0f05")
)
SCRIPT = f"""#!/bin/busybox sh
b=/bin/busybox
echo BENCH init
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
$b modprobe virtio_mmio; $b modprobe virtio_blk
now() {{ read -r t rest </proc/uptime; echo BENCH $1 $t; }}
now ports-begin
/ports || echo no port access
now ports-end
now reads-begin
$b dd if=/dev/vda of=/dev/null bs=4096 iflag=direct count={READS} 2>/dev/null
now reads-end
$b poweroff -f
"""
COMMAND_LINE = (
    "console=ttyS0 quiet mitigations=off init_on_alloc=0 tsc=reliable no_timer_check "
    "panic=-1 reboot=t rcupdate.rcu_expedited=1 cryptomgr.notests rdinit=/bench"
)
# Runs as a process of its own, so that Python's start and our imports count.
OURS = """
import json, sys
from ringzero.config.devices.disk import DiskConfig
from ringzero.vm.machine import Machine
from pathlib import Path
kernel, initrd, disk, line = sys.argv[1:]
disks = (DiskConfig(path=Path(disk), format="raw"),)
with Machine(engine="kvm", kernel=kernel, initrd=initrd, memory="256M", disks=disks,
             command_line=line) as machine:
    def out(data):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    machine.serial.on_output = out
    machine.start()
    machine.wait(120)
    print("STATS", json.dumps(machine.stats()), flush=True)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    image = micro.ensure()
    results: dict[str, list[dict[str, float]]] = {"ringzero": [], "qemu": []}
    with tempfile.TemporaryDirectory() as work:
        disk, initrd = Path(work) / "disk", Path(work) / "initrd"
        disk.write_bytes(bytes(8 << 20))
        initrd.write_bytes(image.initrd.read_bytes() + _overlay())
        kernel = Path(work) / "vmlinuz"
        kernel.write_bytes(image.kernel.read_bytes())
        os.environ["RINGZERO_CACHE_DIR"] = work
        # A kernel file that has just been made is not yet kept unpacked.
        time.sleep(2)
        files = [str(kernel), str(initrd), str(disk)]
        # One more round for ringzero, not counted: it fills caches that a user has.
        measure([sys.executable, "-c", OURS, *files, COMMAND_LINE])
        for _ in range(arguments.rounds):
            results["qemu"].append(measure(_qemu(*files)))
            results["ringzero"].append(measure([sys.executable, "-c", OURS, *files, COMMAND_LINE]))
    table = report(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")
    return 0


def _program() -> bytes:
    """Return a static ELF file of _CODE."""
    base, start = 0x400000, 64 + 56
    end = start + len(_CODE)
    header = struct.pack(
        "<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 2, 62, 1, base + start, 64, 0, 0, 64, 56, 1,
        0, 0, 0,
    )  # fmt: skip
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, end, end, 4096) + _CODE


def _overlay() -> bytes:
    tree, file = Rootfs(), io.BytesIO()
    tree.add_file("ports", _program(), mode=0o755)
    tree.add_file("bench", SCRIPT.encode(), mode=0o755)
    tree.write_cpio(file)
    return file.getvalue()


def _qemu(kernel: str, initrd: str, disk: str) -> list[str]:
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        sys.exit("bench_kvm: no qemu-system-x86_64 (Debian: qemu-system-x86)")
    return [
        *(qemu, "-accel", "kvm", "-M", "microvm,rtc=on,pcie=off", "-cpu", "host"),
        *("-m", "256M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", kernel, "-initrd", initrd, "-append", COMMAND_LINE, "-serial", "stdio"),
        *("-drive", f"file={disk},format=raw,if=none,id=d"),
        *("-device", "virtio-blk-device,drive=d"),
    ]


def measure(command: list[str]) -> dict[str, float]:
    """Run one machine; return seconds by what was measured."""
    start = time.monotonic()
    found: dict[str, float] = {}
    marks: dict[str, float] = {}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    seen = b""
    while line := process.stdout.readline():
        seen += line
        match = re.search(rb"BENCH (\S+)(?: ([\d.]+))?", line)
        if match and match[1] == b"init":
            found["start to init"] = time.monotonic() - start
        elif line.startswith(b"STATS"):
            print(line.decode().rstrip())
        elif match and match[2]:
            marks[match[1].decode()] = float(match[2])
    process.wait(20)
    if "reads-end" not in marks:
        sys.exit(f"bench_kvm: {command[0]} did not come to the end:\n{seen.decode()[-800:]}")
    found["port read"] = (marks["ports-end"] - marks["ports-begin"]) / PORTS
    found["4 KiB disk read"] = (marks["reads-end"] - marks["reads-begin"]) / READS
    return found


def report(results: dict[str, list[dict[str, float]]]) -> list[dict[str, float | str]]:
    """Print and return the best of the rounds and the ratios."""
    table: list[dict[str, float | str]] = []
    print(f"{'':20} {'ringzero':>12} {'qemu':>12} {'ratio':>7}")
    for what in results["qemu"][0]:
        ours, peer = (min(run[what] for run in results[who]) for who in ("ringzero", "qemu"))
        table.append({"what": what, "ringzero": ours, "qemu": peer, "ratio": ours / peer})
        print(f"{what:20} {ours * 1e3:9.2f} ms {peer * 1e3:9.2f} ms {ours / peer:7.2f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
