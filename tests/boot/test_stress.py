"""stress-ng in a guest, with one, two and four virtual CPUs, and then the kernel's own opinion.

`make stress` runs it for STRESS=600 seconds on each.
"""

import os

import pytest

import ringzero
from ringzero.errors import HostError
from ringzero.image.micro import Recipe, ensure
from tests.boot.test_soak import complaints

SECONDS = int(os.environ.get("RINGZERO_STRESS", "0"))
pytestmark = [
    pytest.mark.boot,
    pytest.mark.engine,
    pytest.mark.skipif(SECONDS == 0, reason="runs for RINGZERO_STRESS seconds: `make stress`"),
    pytest.mark.timeout(SECONDS * 4 + 600),
]
IMAGE = Recipe("stress", packages=("stress-ng",))
# A guest's own command line would switch off its work-arounds of faults: a user's does not.
COMMAND_LINE = "console=ttyS0 quiet panic=-1 reboot=a ringzero.agent"
KINDS = ("cpu", "vm", "switch", "futex")


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_no_warning_under_stress(cpus):
    try:
        image = ensure(IMAGE)
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    words = ["stress-ng", "--timeout", f"{SECONDS}s", "--metrics-brief", "--verify"]
    for kind in KINDS:
        words += [f"--{kind}", str(cpus)]
    words += ["--vm-bytes", "64M", "--cpu-method", "all"]
    with ringzero.Machine(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=COMMAND_LINE,
        memory="1G",
        cpus=cpus,
        agent=True,
        engine="soft",
    ) as vm:
        done = vm.run(words, timeout=SECONDS * 4 + 300)
        print(done.stdout.decode(), done.stderr.decode())
        log = vm.run("dmesg", timeout=60).stdout.decode(errors="replace")
        statistics = vm.stats()
    assert done.exit_code == 0
    assert complaints(log) == []
    assert statistics["faults"] == {}
    assert all(statistics[f"cpu{n}"]["unknown"] == 0 for n in range(cpus))
