"""A balloon in a guest that is forked: each copy has its own."""

import time

import pytest

from ringzero import Machine
from ringzero.image import micro
from ringzero.units import MIB

pytestmark = [pytest.mark.boot, pytest.mark.engine]
PAGES = MIB // 4096


def balloon(machine):
    return machine.parts.devices.backends["balloon"].balloon


def holds(machine, mib):
    """Wait until the balloon of a machine holds so much."""
    end = time.monotonic() + 60
    while balloon(machine).actual != mib * PAGES:
        assert time.monotonic() < end, balloon(machine).actual
        time.sleep(0.02)


def free(machine):
    """Return how much memory the guest has free, in MiB."""
    text = machine.run("grep MemFree /proc/meminfo", timeout=60, text=True, check=True).stdout
    return int(text.split()[1]) // 1024


def test_copies_have_balloons_of_their_own():
    micro.ensure()
    with Machine(image="micro", engine="soft", memory="256M", balloon="32M,stats=1") as machine:
        machine.start()
        holds(machine, 32)
        before = free(machine)
        first, second = machine.fork(2, start=True)
        with first, second:
            assert [balloon(m).actual for m in (first, second)] == [32 * PAGES] * 2
            balloon(first).resize(0)
            balloon(second).resize(64 * PAGES)
            holds(first, 0)
            holds(second, 64)
            assert free(first) > before + 20 and free(second) < before - 20
            # What came out of it can be used, and is nobody else's.
            fill = "dd if=/dev/urandom of=/tmp/x bs=1M count=100 2>/dev/null; md5sum /tmp/x"
            sums = {m.run(fill, timeout=120).stdout for m in (first, machine)}
            assert len(sums) == 2
            holds(machine, 32)
            assert balloon(first).told()["total_memory"] > balloon(second).told()["total_memory"]
            # A copy of a copy; its original ends.
            third = first.fork(1, start=True)[0]
        with third:
            balloon(third).resize(16 * PAGES)
            holds(third, 16)
            again = third.run("md5sum /tmp/x", timeout=60).stdout
            assert again in sums
