"""`python -m tests.cli.signalled ROUNDS SEED [WORDS ...]`: commands, each ended by a signal.

Without a command line in WORDS, runs of a fake machine.
Prints a line for each that did not end as the signal says. Each run is a fork of one process
that has everything loaded, and is signalled at a random moment, once or several times.
"""

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from ringzero.cli import session, signals
from ringzero.cli.main import main
from ringzero.image import micro
from tests.cli.fake import FakeMachine

# Longer than any run may take to end after its signal, in seconds.
_PATIENCE = 20.0
_SPREAD = 0.02
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def fakes(directory):
    """Have machines be fake ones of an image of two empty files."""
    for name in ("vmlinuz", "initrd"):
        (directory / name).write_bytes(b"")
    image = micro.BootFiles(
        "micro", "0" * 24, directory / "vmlinuz", directory / "initrd", "quiet", ("x=1",), 5
    )
    micro.ensure = lambda *_, **__: image
    session.run.__kwdefaults__["build"] = FakeMachine


def child(ready, words, terminal):
    """Run a command line until a signal ends it, on a terminal if there is one; never returns."""
    code = 99
    try:
        if terminal is not None:
            for stream in range(3):
                os.dup2(terminal, stream)
        signals.install()
        os.write(ready, b"x")
        code = main(words)
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def one_round(chance, words, spread):
    """Return the signal and the exit status of one run; 9 and more than 255 where it hung."""
    reading, writing = os.pipe()
    number = chance.choice(ENDING)
    terminals = os.openpty() if "-it" in words else ()
    pid = os.fork()
    if pid == 0:
        child(writing, words, terminals[1] if terminals else None)
    try:
        return number, _signalled(chance, number, pid, reading, writing, spread)
    finally:
        for terminal in terminals:
            os.close(terminal)


def _signalled(chance, number, pid, reading, writing, spread):
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    time.sleep(chance.random() * spread)
    for _ in range(chance.choice((1, 1, 2))):
        os.kill(pid, number)
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 999


def rounds(count, seed, words=("run", "--", "sleep", "30"), spread=_SPREAD):
    chance = random.Random(seed)
    for turn in range(count):
        number, code = one_round(chance, list(words), spread)
        if code != 128 + number:
            print(turn, number.name, code, flush=True)


if __name__ == "__main__":
    if sys.argv[3:]:
        # A guest's command takes longer to begin.
        rounds(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:], 10 * _SPREAD)
        sys.exit()
    with tempfile.TemporaryDirectory() as place:
        os.environ["RINGZERO_ENGINE"] = "soft"
        fakes(Path(place))
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        rounds(int(sys.argv[1]), int(sys.argv[2]))
