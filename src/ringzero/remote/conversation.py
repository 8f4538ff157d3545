"""An action that streams, on a WebSocket of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Mapping
from concurrent.futures import CancelledError
from typing import Any, Self, TypeVar

from ringzero.api.action import Action
from ringzero.api.protocol import STDIN
from ringzero.errors import ControlError
from ringzero.remote import messages
from ringzero.remote.endpoint import WAY, Endpoint, Link
from ringzero.remote.messages import Item, Talk, Told

# Input is sent in messages of so many bytes: a server takes no more than 1 MiB in one.
_PIECE = 256 << 10
# How often a thread that waits for a loop looks whether there is one still, in seconds.
_LOOK = 1.0

T = TypeVar("T")


class Conversation:
    """An action that streams, from `async with` on; leaving the block leaves it.

    `items` yields what comes until the answer, which is `result` then.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        action: Action,
        arguments: Mapping[str, Any],
        machine: str | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._action = action
        self._machine = machine
        self._arguments = arguments
        self._link: Link | None = None
        self._talk = Talk(endpoint.address.authority, endpoint.token)
        self._waiting: list[Item] = []
        self._sending = asyncio.Lock()
        self.result: Any = None

    async def __aenter__(self) -> Self:
        endpoint = self._endpoint
        self._link = link = await endpoint.connect()
        try:
            target, first = messages.open_stream(self._action, self._machine, self._arguments)
            bound = self._action.patience + WAY + endpoint.coming
            try:
                async with asyncio.timeout(bound):
                    with contextlib.suppress(OSError):
                        await link.send(self._talk.begin(target))
                    while not self._talk.open:
                        await self._read()
            except TimeoutError:
                raise ControlError(f"{endpoint.address} has not answered") from None
            if first is not None:
                await self._send(self._talk.text(first))
        except BaseException:
            link.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave, whatever the other side does."""
        if self._link is not None:
            self._link.close()

    async def items(self) -> AsyncGenerator[Item, None]:
        """Yield bytes and events until the answer. Raises the error that it is."""
        while True:
            while self._waiting:
                item = self._waiting.pop(0)
                if isinstance(item, Told) and "event" not in item.content:
                    self.result = messages.result(self._action, item.content)
                    return
                yield item
            if self._talk.ended:
                raise ControlError(f"{self._endpoint.address} left before the answer")
            await self._read()

    async def send(self, data: bytes) -> None:
        """Send input; b"" is its end. Ignored once the other side has gone."""
        for at in range(0, max(1, len(data)), _PIECE):
            if self._talk.open:
                await self._send(self._talk.data(STDIN, data[at : at + _PIECE]))

    async def event(self, kind: str, **content: Any) -> None:
        """Send an event: "signal" with its `name`, "resize" with `rows` and `columns`."""
        if self._talk.open:
            await self._send(self._talk.event(kind, content))

    async def _read(self) -> None:
        assert self._link is not None
        with self._endpoint.speaking():
            self._waiting += self._talk.feed(await self._link.read())
        if self._talk.due:
            due = bytes(self._talk.due)
            self._talk.due.clear()
            await self._send(due)

    async def _send(self, data: bytes) -> None:
        # What went wrong shows where the answer is read.
        assert self._link is not None
        async with self._sending:
            with contextlib.suppress(OSError):
                await self._link.send(data)


class Tap:
    """A conversation for who is on another thread, or on the loop's own (`Link` of an action)."""

    def __init__(self, conversation: Conversation, loop: asyncio.AbstractEventLoop) -> None:
        self._conversation = conversation
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, data: bytes) -> None:
        """Send input; on another thread it waits while the other side takes none."""
        self._do(self._conversation.send(data))

    def event(self, kind: str, **content: Any) -> None:
        """Send an event."""
        self._do(self._conversation.event(kind, **content))

    def close(self) -> None:
        """Leave."""
        # With its loop all is left already.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._conversation.close)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            task = self._loop.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            # Nobody hears it where the client was closed.
            with contextlib.suppress(CancelledError):
                done_on(self._loop, work)


def done_on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns on the loop of another thread; whoever stops to wait ends it.

    Raises CancelledError where the loop has ended.
    """
    try:
        asked = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:
        work.close()
        raise CancelledError from None
    try:
        while True:
            try:
                return asked.result(_LOOK)
            except TimeoutError:
                if asked.done():
                    raise
                if loop.is_closed():
                    raise CancelledError from None
    except BaseException:
        asked.cancel()
        raise
