"""kill -9 in the middle of save, restore, fork, revert, export, import and rm of real machines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ringzero
from tests import chance

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
# Thousands in `make fuzz`.
ROUNDS = 25 if FUZZ == 1 else 60 * FUZZ


@pytest.mark.engine
def test_kill_at_random_moments(tmp_path):
    root = str(Path(__file__).parents[2])
    seed = chance.seed()
    done = subprocess.run(
        [sys.executable, "-m", "tests.vm.sudden_death", str(tmp_path), str(ROUNDS), str(seed)],
        env=os.environ | {"PYTHONPATH": f"{Path(ringzero.__file__).parents[1]}:{root}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (seed, done.stderr)
    found = json.loads(done.stdout)
    assert found.pop("rounds") == ROUNDS == sum(found.values())
