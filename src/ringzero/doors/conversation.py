"""An action that streams, between the thread that does it and the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError, Executor
from typing import Any

from ringzero.api.action import Link, Stream, to_plain
from ringzero.api.protocol import STDERR, STDOUT
from ringzero.records import record

# What waits for a client that does not read before a machine's side waits, too, in items of at
# most 256 KiB.
_BACKLOG = 16
# How often a thread that waits for the loop looks whether there is one still, in seconds.
_LOOK = 1.0


@record
class Data:
    """Bytes of a stream; none are its end (`ringzero.api.protocol`)."""

    stream: int
    content: bytes


@record
class Notice:
    """An event of a conversation: "waiting", "live"."""

    kind: str
    content: dict[str, Any]


@record
class Output:
    """What a command printed, and how it ended; `cut`: it printed more than is kept."""

    status: int
    stdout: bytes
    stderr: bytes
    cut: bool


class Conversation(Stream):
    """An action that streams, between its thread and the event loop."""

    def __init__(
        self,
        act: Callable[[Stream], Any],
        forget: Callable[[Conversation], None],
        senders: Executor,
    ) -> None:
        self._act = act
        self._forget = forget
        self._senders = senders
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Data | Notice | None] = asyncio.Queue(_BACKLOG)
        self._link: Link | None = None
        self._linked = threading.Condition()
        self._closed = False
        self._result: asyncio.Future[Any] = self._loop.create_future()
        # An answer that nobody waits for is no fault.
        self._result.add_done_callback(lambda done: done.cancelled() or done.exception())

    # ---- on the event loop ------------------------------------------------------

    def start(self, name: str) -> None:
        """Begin."""
        threading.Thread(target=self._run, name=f"stream-{name}", daemon=True).start()

    async def items(self) -> AsyncIterator[Data | Notice]:
        """Yield what comes until the answer."""
        while (item := await self._items.get()) is not None:
            yield item

    async def result(self) -> Any:
        """Return the answer as plain data, once `items` has come to its end.

        Raises RingzeroError.
        """
        return await asyncio.shield(self._result)

    async def send(self, data: bytes) -> None:
        """Send input bytes, b"" for their end; returns when the machine's process has them."""
        await self._to_link(lambda link: link.send(data))

    async def tell(self, kind: str, **content: Any) -> None:
        """Send an event: "signal" with its `name`, "resize" with `rows` and `columns`."""
        await self._to_link(lambda link: link.event(kind, **content))

    async def output(self, data: bytes, most: int) -> Output:
        """Give a command its input; return what it prints, at most so many bytes of each kind.

        The conversation is over then. Raises RingzeroError.
        """
        printed = {STDOUT: bytearray(), STDERR: bytearray()}
        cut = False
        feeding = asyncio.ensure_future(self._feed(data))
        try:
            async for item in self.items():
                if isinstance(item, Data) and item.stream in printed:
                    room = most - len(printed[item.stream])
                    cut = cut or len(item.content) > room
                    printed[item.stream] += item.content[: max(room, 0)]
            end = await self.result()
        finally:
            self.close()
            feeding.cancel()
        return Output(end["status"], bytes(printed[STDOUT]), bytes(printed[STDERR]), cut)

    async def _feed(self, data: bytes) -> None:
        if data:
            await self.send(data)
            await self.send(b"")

    def close(self) -> None:
        """Leave, whatever the other side does."""
        with self._linked:
            self._closed = True
            link = self._link
            self._linked.notify_all()
        if link is not None:
            # Closing a socket does not wait.
            link.close()
        # Whoever waits for room here need not any more.
        while not self._items.empty():
            self._items.get_nowait()

    async def _to_link(self, act: Callable[[Link], None]) -> None:
        await self._loop.run_in_executor(self._senders, self._act_on_link, act)

    # ---- on threads -------------------------------------------------------------

    def begin(self, link: Link) -> None:
        with self._linked:
            self._link = link
            closed = self._closed
            self._linked.notify_all()
        if closed:
            link.close()

    def data(self, number: int, content: bytes) -> None:
        self._put(Data(number, bytes(content)))

    def event(self, kind: str, content: dict[str, Any]) -> None:
        self._put(Notice(kind, content))

    def _act_on_link(self, act: Callable[[Link], None]) -> None:
        with self._linked:
            self._linked.wait_for(lambda: self._link is not None or self._closed)
            link = None if self._closed else self._link
        if link is not None:
            act(link)

    def _put(self, item: Data | Notice | None) -> None:
        if self._closed and item is not None:
            return
        putting = self._items.put(item)
        try:
            done = asyncio.run_coroutine_threadsafe(putting, self._loop)
            # A loop that ends forgets what it has not begun.
            while not self._loop.is_closed():
                with contextlib.suppress(TimeoutError):
                    done.result(_LOOK)
                    return
        except (RuntimeError, CancelledError):
            # The loop has ended before this thread has.
            putting.close()

    def _run(self) -> None:
        answer: Any = None
        fault: BaseException | None = None
        try:
            answer = to_plain(self._act(self))
        except BaseException as caught:
            fault = caught
        with self._linked:
            self._closed = True
            self._linked.notify_all()

        def end() -> None:
            self._forget(self)
            if self._result.done():
                return
            if fault is not None:
                self._result.set_exception(fault)
            else:
                self._result.set_result(answer)

        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(end)
        self._put(None)
