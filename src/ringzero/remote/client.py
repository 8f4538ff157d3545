"""The client for programs without asyncio: the same actions, as plain methods.

    with Client("https://server:8443", token=text) as host:
        host.machine("web").restart(timeout=5)

Its connections live on the loop of a thread of its own; methods may be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Self, TypeVar

from ringzero.api.action import Action, Stream
from ringzero.api.values import Event
from ringzero.control.host.operations import HostOperations
from ringzero.errors import ConflictError, ControlError
from ringzero.remote.aio import AsyncClient, AsyncJob
from ringzero.remote.conversation import done_on
from ringzero.remote.machine import Machine, Runner, following, streamed

T = TypeVar("T")


class Client(HostOperations):
    """Another host, as `AsyncClient` has it. Raises what its actions raise, and ControlError."""

    def __init__(
        self, place: str, *, token: str | None = None, authorities: str | Path | None = None
    ) -> None:
        self._client = AsyncClient(place, token=token, authorities=authorities)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave; nothing can be asked any more."""
        with self._starting:
            loop, self._loop, self._closed = self._loop, None, True
        if loop is not None:
            asyncio.run_coroutine_threadsafe(_end(self._client), loop).result()
            loop.call_soon_threadsafe(loop.stop)

    def perform(self, action: Action, arguments: dict[str, Any], stream: Stream) -> Any:
        """Do it there, and return a value of the action's result type."""
        if action.wants_stream:
            return streamed(self._client.endpoint, action, arguments, stream, self._run)
        return self._run(self._client.perform(action, arguments, stream))

    def machine(self, name: str, *, odd: bool = False) -> Machine:
        """Return the machine called `name`; whether there is one, its actions tell."""
        return Machine(self._client.machine(name), self._run)

    def watch(self) -> Iterator[Event]:
        """Yield what happens to machines from now on, until the host's server ends."""
        events = self._client.watch()
        try:
            while (event := self._run(following(events))) is not None:
                yield event
        finally:
            with contextlib.suppress(ConflictError, ControlError):
                self._run(_close(events))

    def version(self) -> str:
        """Return the version of ringzero there."""
        return str(self._run(self._client.version()))

    def begin(
        self, name: str, arguments: Mapping[str, Any] | None = None, machine: str | None = None
    ) -> Job:
        """Have the action called `name` done as a job, which goes on when this client leaves."""
        return Job(self._run(self._client.begin(name, arguments, machine)), self._run)

    def job(self, identifier: str) -> Job:
        """Return a job by its identifier. Raises NotFoundError."""
        return Job(self._run(self._client.job(identifier)), self._run)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._starting:
            if self._closed:
                work.close()
                raise ConflictError("the client is closed", hint="make another one")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=_keep_going, args=(self._loop,), name="client", daemon=True
                ).start()
            loop = self._loop
        try:
            return done_on(loop, work)
        except CancelledError:
            raise ControlError("the client was closed meanwhile") from None


class Job:
    """Something that a host does, whoever waits for it; as `AsyncJob`."""

    def __init__(self, job: AsyncJob, run: Runner) -> None:
        self._job = job
        self._run = run

    @property
    def id(self) -> str:
        """What it is called."""
        return self._job.id

    @property
    def status(self) -> str:
        """Return running, done, failed or cancelled, as it was last told."""
        return self._job.status

    def refresh(self, wait: float = 0.0) -> None:
        """Ask what it is doing; `wait` for its end, for so many seconds at most."""
        self._run(self._job.refresh(wait))

    def wait(self) -> Any:
        """Wait for its end, and return its result. Raises the error that it ended with."""
        return self._run(self._job.wait())

    def cancel(self) -> None:
        """End it. Raises ConflictError for one that cannot be ended."""
        self._run(self._job.cancel())


async def _end(client: AsyncClient) -> None:
    """Leave, and have others who wait on this loop hear of it."""
    await client.close()
    for link in list(client.endpoint.links):
        link.close()
    waiting = asyncio.all_tasks() - {asyncio.current_task()}
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    # Connections end in the loop's next round, and those over TLS in the one after it.
    for _ in range(3):
        await asyncio.sleep(0)


async def _close(found: AsyncGenerator[Any, None]) -> None:
    await found.aclose()


def _keep_going(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()
