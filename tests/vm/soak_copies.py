"""`python -m tests.vm.soak_copies FORM COUNT FILE [SECONDS]`: copies, and a command in each.

FORM is `objects` (all in this process) or `processes` (a machine that others fork). What was
made, and how each death came about, is kept in FILE, from which another run goes on: COUNT is of
all of them. Prints a line for each copy whose command did not end as it should.
"""

import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ringzero
from ringzero.config.machine import MachineConfig
from ringzero.control.host import claims, client
from ringzero.control.host.launch import launch
from ringzero.errors import RingzeroError
from ringzero.host.progress import QUIET
from ringzero.image.micro import ensure

# Copies that are made at once, and the most that live beside each other.
_AT_ONCE, _ALIVE = 10, 100
# Longer than a command takes on any busy host, in seconds.
_PATIENCE = 120
_MEMORY = "96M"


class Tally:
    """How many copies were made and what became of some, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.made = 0
        self.deaths: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            kept = json.loads(path.read_text())
            self.made, self.deaths = kept["made"], kept["deaths"]

    def add(self, death: str | None) -> None:
        self.made += 1
        if death is not None:
            self.deaths.append(death)
            print(f"copy {self.made}: {death}", flush=True)

    def save(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({"made": self.made, "deaths": self.deaths}, indent=1))
        new.replace(self._path)


def first_command(copy, number: int) -> str | None:
    """Run a copy's first command; return what went wrong."""
    word = f"copy-{number}-{random.getrandbits(32):x}"
    try:
        done = copy.run(["echo", word], timeout=_PATIENCE)
    except (RingzeroError, OSError, RuntimeError) as fault:
        why = f" from {fault.__cause__!r}" if fault.__cause__ else ""
        return f"{type(fault).__name__}: {fault}{why}"
    if (done.stdout, done.stderr, done.exit_code) == (f"{word}\n".encode(), b"", 0):
        return None
    return f"wrong answer: {done!r}"


@contextlib.contextmanager
def objects() -> Iterator[tuple]:
    """Yield how copies are made and ended, within this process."""
    with ringzero.Machine(image="micro", memory=_MEMORY, engine="soft") as origin:
        origin.run("true")
        yield origin.fork, lambda copy: copy.stop()


@contextlib.contextmanager
def processes() -> Iterator[tuple]:
    """Yield how copies are made and ended, each a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["RINGZERO_MACHINES_DIR"] = place
        image = ensure()
        config = MachineConfig.create(
            kernel=image.kernel,
            initrd=image.initrd,
            command_line=image.command_line,
            memory=_MEMORY,
            engine="soft",
            agent=True,
        )
        launch(claims.create("origin", config), progress=QUIET)
        origin = client.machine("origin")
        try:
            yield origin.copies, lambda copy: copy.remove(force=True)
        finally:
            for machine in client.machines():
                machine.remove(force=True)


FORMS = {"objects": objects, "processes": processes}


def soak(form: str, count: int, path: Path, seconds: float) -> Tally:
    """Make copies until there are `count` or the time is over."""
    tally, end, alive = Tally(path), time.monotonic() + seconds, []
    with FORMS[form]() as (fork, stop):
        while tally.made < count and time.monotonic() < end:
            try:
                made = fork(_AT_ONCE)
            except RingzeroError as fault:
                tally.add(f"fork: {type(fault).__name__}: {fault}")
                continue
            for copy in made:
                tally.add(first_command(copy, tally.made))
            alive += made
            # Mostly few, now and then a hundred: then most of them go at once.
            if len(alive) >= _ALIVE or random.random() < 0.2:
                for copy in alive:
                    stop(copy)
                alive.clear()
            tally.save()
        for copy in alive:
            stop(copy)
    return tally


if __name__ == "__main__":
    # Whoever ends it wants the copies, which may be processes, to end as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    kind, wanted, place, *limit = sys.argv[1:]
    found = soak(kind, int(wanted), Path(place), float(limit[0]) if limit else float("inf"))
    print(f"{kind}: {found.made} copies, {len(found.deaths)} deaths")
    sys.exit(bool(found.deaths))
