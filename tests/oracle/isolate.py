"""Run any executor in a child process, so that a crash costs one case, not the run."""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import multiprocessing
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Final

from tests.oracle.model import CRASHED, Case, Executor, Outcome

_CHUNK: Final = 256
_FORK: Final = multiprocessing.get_context("fork")


class Isolated:
    """The executor that `factory` makes, in a forked child.

    A case in which the child dies, or which takes longer than `patience`
    seconds, ends as `CRASHED`; a new child goes on with the next.
    """

    def __init__(self, factory: Callable[[], Executor], name: str, patience: float = 30) -> None:
        self.name = name
        self._factory = factory
        self._patience = patience
        self._progress = mmap.mmap(-1, 8)
        self._child: BaseProcess | None = None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            self._pipe.close()
            child.kill()
            child.join()

    def run(self, cases: list[Case]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for start in range(0, len(cases), _CHUNK):
            outcomes += self._run_chunk(cases[start : start + _CHUNK])
        return outcomes

    def _run_chunk(self, cases: list[Case]) -> list[Outcome]:
        if not cases:
            return []
        if self._child is None:
            self._start()
        with contextlib.suppress(EOFError, ConnectionError):
            self._pipe.send(cases)
            if self._wait():
                result: list[Outcome] | Exception = self._pipe.recv()
                if isinstance(result, Exception):
                    raise result
                return result
        at = self._current()
        self.close()
        crashed = Outcome(cases[at].state, CRASHED)
        return [*self._run_chunk(cases[:at]), crashed, *self._run_chunk(cases[at + 1 :])]

    def _current(self) -> int:
        """The number, within its chunk, of the case that the child is at."""
        return int(struct.unpack_from("<Q", self._progress)[0])

    def _wait(self) -> bool:
        """Until the child has something to say; false when one case takes too long."""
        seen = -1
        while not self._pipe.poll(self._patience):
            if self._current() == seen:
                return False
            seen = self._current()
        return True

    def _start(self) -> None:
        """A new child; however long the executor takes to build, it is waited for."""
        self._pipe, theirs = _FORK.Pipe()
        self._child = _FORK.Process(target=self._serve, args=(theirs,), daemon=True)
        self._child.start()
        theirs.close()
        fault: Exception | None = self._pipe.recv()
        if fault is not None:
            self.close()
            raise fault

    def _serve(self, pipe: Connection) -> None:
        """The child: None when ready, then batches in, outcomes (or the exception) out."""
        self._pipe.close()
        faulthandler.disable()
        try:
            executor = self._factory()
        except Exception as fault:
            pipe.send(fault)
            return
        pipe.send(None)
        with contextlib.suppress(EOFError):
            while True:
                cases = pipe.recv()
                outcomes = []
                try:
                    for number, case in enumerate(cases):
                        struct.pack_into("<Q", self._progress, 0, number)
                        outcomes += executor.run([case])
                except Exception as fault:
                    pipe.send(fault)
                    continue
                pipe.send(outcomes)
