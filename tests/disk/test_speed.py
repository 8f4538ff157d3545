"""The bench of disks as a test: the ratios that the project promises (`make bench`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Five turns of a dozen conversions on a busy machine.
LIMIT_S = 1200
pytestmark = [pytest.mark.speed, pytest.mark.peer, pytest.mark.timeout(LIMIT_S)]

FORMATS = ("raw", "qcow2", "vmdk", "vhdx", "vdi", "vhd")
BENCH = Path(__file__).parents[2] / "bench" / "disk.py"


@pytest.mark.parametrize(
    ("words", "least"),
    [
        *(([f"{kind} sequential"], 0.8) for kind in FORMATS),
        *(([f"{kind} 4k random"], 0.5) for kind in FORMATS),
        *(([f"convert {kind} to"], 0.8) for kind in FORMATS),
        (["chain"], 0.8),
    ],
    ids=str,
)
def test_ratio_to_the_peer(words, least, tmp_path, request):
    if "speed" not in request.config.getoption("markexpr"):
        pytest.skip("takes minutes: make bench")
    table = tmp_path / "rows.json"
    subprocess.run([sys.executable, BENCH, *words, "--json", table], check=True, timeout=LIMIT_S)
    rows = json.loads(table.read_text())
    slow = {name: round(row["ratio"], 2) for name, row in rows.items() if row["ratio"] < least}
    assert not slow, slow
