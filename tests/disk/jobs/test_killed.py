"""Processes killed with -9 while a block job works: the disk has all that was written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.disk.lossy import ROUNDS

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("kind", ["mirror", "backup", "commit", "lower", "stream"])
def test_random_moments(kind):
    rounds = 12 * ROUNDS
    done = subprocess.run(
        [sys.executable, "-m", "tests.disk.jobs.killed", kind, str(rounds), "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60 + 3 * rounds,
    )
    assert done.returncode == 0, done.stderr
    assert sum(json.loads(done.stdout).values()) == rounds
