"""Compiles the engine's units side by side, in processes of their own.

One process for each CPU takes units by name, one after the other, from its standard
input and answers with the name when the unit lies in the directory. One that the host
kills for want of memory gives its unit back, and the others go on.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from ringzero.errors import EngineError, HostError
from ringzero.host.files import host_error
from ringzero.host.process import usable_cpus
from ringzero.jit.compile.llvm import Target

# Called with (units done, units in all).
Progress = Callable[[int, int], None]
# Exit code of a worker when the host refuses a file (sysexits.h, EX_IOERR); it says the errno.
NO_ROOM = 74
_PACKAGE_ROOT = Path(__file__).parent.parent.parent
# Of a worker's last words, in bytes.
_KEPT = 2000


class _Worker:
    """One process, and the unit that it compiles now."""

    def __init__(self, guest: str, work: Path, target: Target) -> None:
        paths = (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH"))
        self.unit: str | None = None
        # A file, as nobody reads while the process runs.
        self._complaints = os.memfd_create("complaints", os.MFD_CLOEXEC)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ringzero.jit.compile_unit", guest, str(work), target.name],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self.answers = self._process.stdin, self._process.stdout

    def take(self, unit: str) -> None:
        """Begin with a unit."""
        self.unit = unit
        # One that has died is heard of when its answer is read.
        with suppress(BrokenPipeError):
            self._orders.write(unit.encode() + b"\n")
            self._orders.flush()

    def done(self) -> bool:
        """Read the answer that is there; False when the process has ended in place of it."""
        return bool(self.answers.readline())

    def end(self, *, kill: bool = True) -> int:
        """End the process; return its exit code."""
        if kill:
            self._process.kill()
        with suppress(BrokenPipeError):
            self._orders.close()
        code = self._process.wait()
        self.answers.close()
        return code

    def last_words(self) -> str:
        """Return the end of what an ended process had to say; once."""
        with os.fdopen(self._complaints, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _KEPT))
            return file.read().decode(errors="replace").strip()


def compile_all(
    guest: str, names: Iterable[str], work: Path, target: Target, progress: Progress | None = None
) -> None:
    """Compile units of a guest's engine, in this order, into the directory `work`.

    Raises HostError, EngineError.
    """
    waiting = deque(names)
    total, done = len(waiting), 0
    workers: list[_Worker] = []
    with selectors.DefaultSelector() as selector:
        try:
            for _ in range(min(usable_cpus(), total)):
                worker = _Worker(guest, work, target)
                workers.append(worker)
                selector.register(worker.answers, selectors.EVENT_READ, worker)
                worker.take(waiting.popleft())
            while done < total:
                if progress:
                    progress(done, total)
                for key, _ in selector.select():
                    worker = key.data
                    if worker.done():
                        done += 1
                        worker.unit = None
                        if waiting:
                            worker.take(waiting.popleft())
                        continue
                    selector.unregister(worker.answers)
                    workers.remove(worker)
                    waiting.appendleft(_given_back(worker, work, left=bool(workers)))
                    for idle in (w for w in workers if w.unit is None and waiting):
                        idle.take(waiting.popleft())
        finally:
            for worker in workers:
                worker.end()
                worker.last_words()
    if progress:
        progress(done, total)


def _given_back(worker: _Worker, work: Path, *, left: bool) -> str:
    """Return the unit of a worker that the host has killed; raises what else has ended it."""
    code = worker.end(kill=False)
    words, unit = worker.last_words(), worker.unit or "none"
    if code == NO_ROOM:
        number = int(words) if words.isdecimal() else errno.EIO
        raise host_error(OSError(number, os.strerror(number)), "write", work)
    if code == -signal.SIGKILL:
        if left:
            return unit
        raise HostError(
            f"the host killed the engine's compiler in unit {unit}",
            hint="is there memory for it? It takes about 200 MiB",
        )
    raise EngineError(
        f"compiling the engine failed in unit {unit}",
        hint="run with RINGZERO_DEBUG=3 and report the output",
        detail=words,
    )
