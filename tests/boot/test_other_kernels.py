"""Other stock kernels than the default guest's, on the software engine."""

import os

import pytest

import ringzero
from ringzero.board.boot.kernel import load_kernel
from ringzero.errors import HostError, NotFoundError
from ringzero.image.micro import Recipe, ensure
from ringzero.image.names import IMAGES
from tests.boot.test_soak import complaints

pytestmark = [pytest.mark.boot, pytest.mark.engine]
LONG = int(os.environ.get("RINGZERO_FUZZ", "1") != "1")
# Debian's own kernel is 70 MB to fetch; the newer cloud kernel is 30.
NAMES = ["backports", *LONG * ["full", "trixie"]]
# Another release than the machine's own, which its mirror has or has not.
TRIXIE = Recipe("trixie", suite="trixie")


def files(name):
    try:
        return ensure(TRIXIE) if name == "trixie" else IMAGES.get(name)()
    except (HostError, NotFoundError) as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")


@pytest.mark.parametrize("name", NAMES)
def test_other_kernels_come_up(name):
    image = files(name)
    with ringzero.Machine(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        memory="512M",
        agent=True,
        engine="soft",
    ) as vm:
        release = vm.run("uname -r", timeout=120).stdout.decode().strip()
        assert release == load_kernel(image.kernel).version
        assert vm.run(["cat"], input=b"x" * 100_000, timeout=60).stdout == b"x" * 100_000
        log = vm.run("dmesg", timeout=60).stdout.decode(errors="replace")
        statistics = vm.stats()
    assert f"Linux version {release}" in log
    assert complaints(log) == []
    assert statistics["cpu0"]["unknown"] == 0
