"""The jobs of one owner, by their names."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ringzero.disk.jobs.contract import Job, JobInfo, State
from ringzero.errors import ConflictError, InvalidValueError, NotFoundError

# Of one owner's jobs that are not dismissed: they are few, and their names are somebody's input.
_MOST = 64
# QEMU's limit for such names is that of its other ids.
_NAME_MAX = 127


class Jobs:
    """Jobs that were added, until they are dismissed."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def start(self, name: str, make: Callable[[], Job]) -> Job:
        """Make a job called `name`, or by the first free name like it, and start it.

        Raises ConflictError, InvalidValueError, and what `make` and `Job.start` raise.
        """
        if not name or len(name) > _NAME_MAX or not name.isprintable():
            raise InvalidValueError(f"no job is called {name[:_NAME_MAX]!r}", hint="use letters")
        with self._lock:
            self._forget()
            if name in self._jobs:
                raise ConflictError(
                    f"there is a job {name!r} already",
                    hint="choose another name, or dismiss it once it is concluded",
                )
            if len(self._jobs) >= _MOST:
                raise ConflictError(f"there are {_MOST} jobs already", hint="dismiss some")
            job = make()
            job.start()
            self._jobs[name] = job
            return job

    def free_name(self, stem: str) -> str:
        """Return a name that no job has: `stem`, or that with a number."""
        with self._lock:
            self._forget()
            names = [stem, *(f"{stem}-{n}" for n in range(2, _MOST + 2))]
            return next(name for name in names if name not in self._jobs)

    def find(self, name: str) -> Job:
        """Return the job called `name`; NotFoundError."""
        with self._lock:
            self._forget()
            job = self._jobs.get(name)
            known = ", ".join(self._jobs)
        if job is None:
            raise NotFoundError(f"there is no job {name[:_NAME_MAX]!r}", hint=known or None)
        return job

    def infos(self) -> list[JobInfo]:
        """Return how all stand, the oldest first."""
        with self._lock:
            self._forget()
            return [job.info() for job in self._jobs.values()]

    def _forget(self) -> None:
        """Drop what was dismissed; the lock is held."""
        self._jobs = {n: job for n, job in self._jobs.items() if job.state is not State.NULL}
