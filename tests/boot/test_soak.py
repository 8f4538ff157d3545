"""Mixed work for a while, every result checked, and then the kernel's own opinion.

`make soak` runs it for RINGZERO_SOAK=600 seconds.
"""

import os
from pathlib import Path

import pytest

import ringzero
from ringzero.errors import HostError
from ringzero.image.micro import ensure
from tests.boot import soak_guest
from tests.vm.guests import TOOLS

pytestmark = [pytest.mark.boot, pytest.mark.engine]
SECONDS = float(os.environ.get("RINGZERO_SOAK", "0"))
# What a kernel says when something is wrong with the machine, or took too long.
COMPLAINTS = (
    *("WARNING", "BUG:", "Oops", "Call Trace", "general protection", "stall", "lockup"),
    *("hung_task", "blocked for more than", "unstable", "I/O error", "Out of memory", "segfault"),
    *("invalid opcode", "Machine check", "unhandled", "NMI received", "timed out"),
)


def complaints(log):
    """Return the lines of a kernel's log that must not be there."""
    return [line for line in log.splitlines() if any(word in line for word in COMPLAINTS)]


def test_complaints_are_seen():
    log = "[ 1.0] fine\n[ 2.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!\n"
    assert complaints(log) == ["[ 2.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!"]


@pytest.mark.skipif(SECONDS == 0, reason="runs for RINGZERO_SOAK seconds: `make soak`")
@pytest.mark.timeout(SECONDS * 2 + 300)
def test_mixed_work(tmp_path):
    try:
        image = ensure(TOOLS)
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(soak_guest.SHARE * soak_guest.AT_ONCE)
    script = Path(soak_guest.__file__).read_bytes()
    with ringzero.Machine(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        memory="1G",
        agent=True,
        engine="soft",
        disks=[f"{path},format=raw"],
    ) as vm:
        done = vm.run(["python3", "-", str(SECONDS)], input=script, timeout=SECONDS * 2 + 200)
        print(done.stdout.decode())
        log = vm.run("dmesg", timeout=60).stdout.decode(errors="replace")
        statistics = vm.stats()
    print(statistics)
    assert done.exit_code == 0, done.stderr.decode()
    runs = {
        name: int(count)
        for name, count in (s.split() for s in done.stdout.decode().split("\n")[:-1])
    }
    assert sum(runs.values()) >= soak_guest.AT_ONCE
    if SECONDS >= 60:
        assert min(runs.values()) > 0, runs
    assert complaints(log) == []
    assert statistics["faults"] == {}
    assert statistics["cpu0"]["unknown"] == 0
