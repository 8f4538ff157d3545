"""Jobs: actions that go on when nobody waits for their answer, to be looked at and ended."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping
from typing import Any, Protocol

from ringzero.api.table import get
from ringzero.doors.caller import Caller
from ringzero.doors.conversation import Conversation
from ringzero.errors import ConflictError, NotFoundError, RingzeroError, TimeoutExpiredError

# How many that have ended are remembered, and how many may be under way.
_REMEMBERED, MOST = 256, 64
RUNNING, DONE, FAILED, CANCELLED = "running", "done", "failed", "cancelled"


class Call(Protocol):
    """What does a plain action (`Manager.call`)."""

    async def __call__(
        self,
        name: str,
        arguments: Mapping[str, Any],
        machine: str | None = None,
        *,
        caller: Caller,
        long: bool = False,
    ) -> Any: ...


class Converse(Protocol):
    """What begins an action that streams (`Manager.converse`)."""

    def __call__(
        self,
        name: str,
        arguments: Mapping[str, Any],
        machine: str | None = None,
        *,
        caller: Caller,
    ) -> Conversation: ...


class Job:
    """An action under way, or its answer."""

    def __init__(
        self, number: int, name: str, machine: str | None, conversation: Conversation | None
    ) -> None:
        self.id = str(number)
        self.action = name
        self.machine = machine
        self.status = RUNNING
        self.begun = time.time()
        self.ended: float | None = None
        self.result: Any = None
        self.error: dict[str, Any] | None = None
        self.task: asyncio.Task[None] | None = None
        self.conversation = conversation

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "id": self.id,
            "action": self.action,
            "machine": self.machine,
            "status": self.status,
            "begun": self.begun,
            "ended": self.ended,
            "result": self.result,
            "error": self.error,
            "can_cancel": self.conversation is not None and self.status == RUNNING,
        }


class Jobs:
    """The jobs of a manager, by their identifiers."""

    def __init__(self, call: Call, converse: Converse) -> None:
        self._call = call
        self._converse = converse
        self._jobs: dict[str, Job] = {}
        self._numbers = itertools.count(1)

    def begin(
        self,
        name: str,
        arguments: Mapping[str, Any],
        machine: str | None = None,
        *,
        caller: Caller,
    ) -> Job:
        """Begin an action. Raises InvalidValueError, ForbiddenError, ConflictError."""
        action = get(name)
        caller.require(action)
        given = action.check(arguments)
        if sum(job.status == RUNNING for job in self._jobs.values()) >= MOST:
            raise ConflictError(f"{MOST} jobs are under way", hint="wait until one has ended")
        conversation = None
        if action.streams:
            conversation = self._converse(name, given, machine, caller=caller)
        job = Job(next(self._numbers), name, machine, conversation)
        self._jobs[job.id] = job
        job.task = asyncio.ensure_future(self._run(job, given, caller))
        self._forget()
        return job

    def get(self, identifier: str) -> Job:
        """Return a job. Raises NotFoundError."""
        found = self._jobs.get(identifier)
        if found is None:
            raise NotFoundError(
                f"there is no job {identifier[:64]!r}",
                hint="those of an earlier `ringzero serve`, and old ones, are forgotten",
            )
        return found

    def all(self) -> list[Job]:
        """Return all jobs that are remembered, the oldest first."""
        return list(self._jobs.values())

    async def wait(self, identifier: str, timeout: float) -> Job:
        """Return a job that has ended. Raises TimeoutExpiredError after `timeout` seconds."""
        job = self.get(identifier)
        assert job.task is not None
        await asyncio.wait([job.task], timeout=timeout)
        if job.status == RUNNING:
            raise TimeoutExpiredError(f"job {job.id} goes on after {timeout:g} seconds")
        return job

    def cancel(self, identifier: str, *, caller: Caller) -> Job:
        """End a job that can be ended: one that streams. Raises ConflictError, NotFoundError."""
        job = self.get(identifier)
        caller.refuse("ending a job changes something")
        if job.status == RUNNING:
            if job.conversation is None:
                raise ConflictError(
                    f"{job.action!r} cannot be ended in between",
                    hint="it ends by itself; look at the job's status",
                )
            job.status = CANCELLED
            job.ended = time.time()
            job.conversation.close()
        return job

    async def close(self) -> None:
        """Wait for nothing: what has begun goes on where it is done."""
        for job in self._jobs.values():
            if job.task is not None:
                job.task.cancel()

    async def _run(self, job: Job, given: Mapping[str, Any], caller: Caller) -> None:
        try:
            if job.conversation is not None:
                async for _ in job.conversation.items():
                    pass
                result = await job.conversation.result()
            else:
                result = await self._call(job.action, given, job.machine, caller=caller, long=True)
        except RingzeroError as fault:
            self._end(job, FAILED, error=fault.to_dict())
        except Exception as fault:
            error = RingzeroError(
                f"{type(fault).__name__}: {fault}", hint="this is a fault of ours"
            )
            self._end(job, FAILED, error=error.to_dict())
            raise
        else:
            self._end(job, DONE, result=result)

    @staticmethod
    def _end(
        job: Job, status: str, *, result: Any = None, error: dict[str, Any] | None = None
    ) -> None:
        if job.status == RUNNING:
            job.status, job.ended = status, time.time()
            job.result, job.error = result, error

    def _forget(self) -> None:
        """Forget the oldest that have ended."""
        over = [job for job in self._jobs.values() if job.status != RUNNING]
        for job in over[: max(0, len(over) - _REMEMBERED)]:
            del self._jobs[job.id]
