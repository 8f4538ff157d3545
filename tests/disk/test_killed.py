"""Processes killed with -9 while they write, on storage that then loses what was not flushed.

A few rounds for each format that is written; `make fuzz` does thousands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.disk.killed import FLAVOURS
from tests.disk.lossy import ROUNDS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
def test_random_moments(flavour):
    rounds = 3 * ROUNDS
    done = subprocess.run(
        [sys.executable, "-m", "tests.disk.killed", str(flavour), str(rounds), "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60 + 3 * rounds,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["killed"] == rounds
