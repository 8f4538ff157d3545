"""Signals end a run whenever they come: none is lost, none hangs it, the code says which."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import ringzero
from ringzero.cli.signals import Loop

# Some thousands in `make fuzz`.
FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
ROUNDS = 150 if FUZZ == 1 else 500 * FUZZ


def test_signals_at_random_moments():
    source = Path(ringzero.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.signalled", str(ROUNDS), str(os.getpid())],
        env=os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{Path.cwd()}"},
        capture_output=True,
        text=True,
        timeout=280 * FUZZ,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]


def test_a_loop_is_woken_and_does_not_spin():
    loop, woken = Loop(), []
    with loop:
        threading.Timer(0.1, loop.wake).start()
        began = time.monotonic()
        loop.wait(5)
        woken.append(time.monotonic() - began)
        used = time.process_time()
        loop.wait(0.3)
        assert time.process_time() - used < 0.1
    assert 0.05 < woken[0] < 3


def test_ctrl_c_between_two_waits_is_not_lost():
    with pytest.raises(KeyboardInterrupt), Loop() as loop:
        os.kill(os.getpid(), 2)
        time.sleep(0.01)
        loop.wait(10)
    with pytest.raises(KeyboardInterrupt), Loop():
        os.kill(os.getpid(), 2)
        time.sleep(0.01)
