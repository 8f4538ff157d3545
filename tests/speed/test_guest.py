"""What the software engine must reach beside QEMU's TCG, on the rows of `bench/guest.py`."""

import math
import runpy
from pathlib import Path

import pytest

from ringzero.units import MIB
from tests.vm import guests
from tests.vm.peak_memory import PeakMemory

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.speed, pytest.mark.boot, pytest.mark.engine, pytest.mark.peer,
              pytest.mark.timeout(600)]  # fmt: skip


@pytest.fixture(scope="module")
def bench():
    reason = guests.missing("qemu")
    if reason:
        pytest.skip(reason)
    return runpy.run_path(str(ROOT / "bench" / "guest.py"))


def test_starts_are_no_slower_than_the_peer_by_much(bench):
    rows = bench["bench_starts"]([], rounds=2)
    warm, cold = rows["start warm"], rows["start cold"]
    assert warm["ringzero"] <= 1.5 * warm["qemu"]
    assert cold["ringzero"] <= 4 * cold["qemu"]


def test_programs_reach_seven_tenths_of_the_peers_speed(bench):
    rows = bench["bench_programs"]("", [], rounds=1)
    ratios = [rows[name]["qemu"] / rows[name]["ringzero"] for name in bench["PROGRAMS"]]
    assert math.exp(sum(map(math.log, ratios)) / len(ratios)) >= 0.7


def test_memory_beyond_the_guests_stays_small(bench):
    """The machine runs in this process, so all that pytest holds is counted too."""
    image = bench["ensure"](guests.TOOLS)
    memory = bench["MEMORY"]
    with (
        guests.build("ringzero", bench["config"](image)) as machine,
        PeakMemory(bench["process_of"](machine), memory) as peak,
    ):
        assert machine.agent.wait_ready(120)
        for name in bench["PROGRAMS"]:
            bench["time_program"](machine, "ringzero", name)
        peak.look()
    assert 10 * MIB < peak.bytes < 300 * MIB
