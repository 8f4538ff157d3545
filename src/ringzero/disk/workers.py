"""A few threads that do jobs, in the order in which they are given.

What `concurrent.futures` does, without the modules that it loads: they took a
tenth of a short conversion's time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self


class Job:
    """One call that a thread makes. `result` waits for it."""

    def __init__(self, call: Callable[..., Any], values: tuple[Any, ...]) -> None:
        self._call = call
        self._values = values
        self._result: Any = None
        self._fault: BaseException | None = None
        self._cancelled = False
        # Whether the call has been made, and returned.
        self.made = False
        self._running = threading.Lock()
        self._running.acquire()

    @classmethod
    def made_already(cls, result: Any) -> Job:
        """Return a job that has this result."""
        job = cls(lambda: result, ())
        job.run()
        return job

    def run(self) -> None:
        """Make the call, unless it has been cancelled."""
        try:
            if not self._cancelled:
                self._result = self._call(*self._values)
                self.made = True
        except BaseException as fault:
            self._fault = fault
        finally:
            self._running.release()

    def cancel(self) -> None:
        """Have the call not made, if it has not begun."""
        self._cancelled = True

    def result(self) -> Any:
        """Return what the call returned, or raise what it raised; waits until it has ended."""
        with self._running:
            pass
        if self._fault is not None:
            raise self._fault
        return self._result


class Workers:
    """Up to `count` threads, one more with each job; leaving the context waits for all jobs."""

    def __init__(self, count: int, name: str) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._count = count
        self._name = name
        self._threads: list[threading.Thread] = []

    def submit(self, call: Callable[..., Any], *values: Any) -> Job:
        """Have a thread call `call(*values)`."""
        job = Job(call, values)
        self._jobs.put(job)
        number = len(self._threads)
        if number < self._count:
            name = f"{self._name}-{number}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The host has no thread to spare: those that there are do it, or this one.
                if not self._threads:
                    self._jobs.get().run()  # type: ignore[union-attr]  # the one just put
            else:
                self._threads.append(thread)
        return job

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
