"""Signals end a run whenever they come: none is lost, none hangs it, the code says which."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Queue

import pytest

import ringzero
from ringzero.cli.signals import Loop, taken

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


FIRST = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.rpartition(".")[0] not in ("", "ringzero", "ringzero.cli") or name in LATER:
            os.kill(os.getpid(), 2)
LATER = ("signal", "enum", "gc", "typing", "ringzero.errors")
for name in LATER:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Finder())
import ringzero.cli.entry
"""


def test_ctrl_c_while_modules_are_loaded_says_nothing():
    source = Path(ringzero.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-S", "-c", FIRST],
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_what_is_taken_is_called_on_a_thread():
    heard = Queue()
    with taken((signal.SIGWINCH,), lambda _: heard.put(threading.current_thread())):
        signal.raise_signal(signal.SIGWINCH)
        assert heard.get(timeout=10) is not threading.main_thread()
    other = threading.Thread(target=lambda: taken((signal.SIGWINCH,), print).__enter__())
    other.start()
    other.join()
    assert signal.getsignal(signal.SIGWINCH) is signal.SIG_DFL


def test_a_signal_is_somebodys_while_handlers_change():
    """Sent by each change itself: before it is done, one that takes signals is there."""
    heard, real = Queue(), signal.signal

    def change(number, handler):
        before = real(number, handler)
        signal.raise_signal(number)
        return before

    signal.signal = change
    try:
        with taken((signal.SIGUSR1,), heard.put):
            assert heard.get(timeout=10) == signal.SIGUSR1
            signal.signal = real
            real(signal.SIGUSR1, signal.SIG_IGN)
    finally:
        signal.signal = real
        real(signal.SIGUSR1, signal.SIG_DFL)
