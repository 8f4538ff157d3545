"""Run any executor in a child process, so that a crash costs one case, not the run."""

from __future__ import annotations

import contextlib
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
            if self._pipe.poll(self._patience):
                result: list[Outcome] | Exception = self._pipe.recv()
                if isinstance(result, Exception):
                    raise result
                return result
        (at,) = struct.unpack_from("<Q", self._progress)
        self.close()
        crashed = Outcome(cases[at].state, CRASHED)
        return [*self._run_chunk(cases[:at]), crashed, *self._run_chunk(cases[at + 1 :])]

    def _start(self) -> None:
        self._pipe, theirs = _FORK.Pipe()
        self._child = _FORK.Process(target=self._serve, args=(theirs,), daemon=True)
        self._child.start()
        theirs.close()

    def _serve(self, pipe: Connection) -> None:
        """The child: batches in, outcomes (or the exception) out."""
        self._pipe.close()
        executor = self._factory()
        with contextlib.suppress(EOFError):
            while True:
                cases = pipe.recv()
                outcomes = []
                try:
                    for number, case in enumerate(cases):
                        struct.pack_into("<Q", self._progress, 0, number)
                        outcomes += executor.run([case])
                except Exception as error:  # noqa: BLE001
                    pipe.send(error)
                    continue
                pipe.send(outcomes)
