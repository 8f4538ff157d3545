"""A machine of another host for programs without asyncio, and actions that stream for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from ringzero.api.action import Action, Stream
from ringzero.api.command import takes_options
from ringzero.control.host.operations import GuestOperations
from ringzero.remote.conversation import Conversation, Tap
from ringzero.remote.endpoint import Endpoint
from ringzero.remote.messages import Data
from ringzero.settings import boot_bound

T = TypeVar("T")

# Does what a coroutine says on the client's loop, and returns what comes of it.
Runner = Callable[[Coroutine[Any, Any, Any]], Any]


class Peer(Protocol):
    """The same machine for asyncio (`ringzero.remote.aio.AsyncMachine`)."""

    name: str

    @property
    def endpoint(self) -> Endpoint:
        """The way to its host."""
        ...

    async def perform(self, action: Action, arguments: dict[str, Any], stream: Stream) -> Any:
        """Do an action."""
        ...

    def sibling(self, name: str) -> Peer:
        """Return another machine of the same host."""
        ...


class Machine(GuestOperations):
    """A machine of another host. Raises what its action raises there, and ControlError."""

    def __init__(self, machine: Peer, run: Runner) -> None:
        self._machine = machine
        self._run = run
        self._config: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """What it is called."""
        return self._machine.name

    def perform(self, action: Action, arguments: dict[str, Any], stream: Stream) -> Any:
        """Do it there, and return a value of the action's result type."""
        if action.wants_stream:
            return streamed(self._machine.endpoint, action, arguments, stream, self._run, self.name)
        return self._run(self._machine.perform(action, arguments, stream))

    @property
    def takes_options(self) -> bool:
        """Whether its guest takes options before a command (`ringzero.api.command`)."""
        return takes_options(self._described().get("command_line"))

    def boot_bound(self) -> float:
        """Return how long the guest may take to start, in seconds; 0 is no bound."""
        return boot_bound(self._described().get("boot_entry"))

    def copies(self, count: int = 1, name: str = "") -> Sequence[Machine]:
        """Return `count` running copies; `name` is a pattern with "%" for their number."""
        made = self.fork(count, name)
        return [Machine(self._machine.sibling(each), self._run) for each in made]

    def _described(self) -> dict[str, Any]:
        if self._config is None:
            self._config = self.inspect()["config"]
        return self._config


def streamed(
    endpoint: Endpoint,
    action: Action,
    arguments: Mapping[str, Any],
    stream: Stream,
    run: Runner,
    machine: str | None = None,
) -> Any:
    """Do an action that streams; `stream` is called on this thread, and may block it."""
    conversation = Conversation(endpoint, action, arguments, machine)
    items = conversation.items()
    tap = run(_begun(conversation))
    try:
        stream.begin(tap)
        while (item := run(following(items))) is not None:
            if isinstance(item, Data):
                stream.data(item.number, item.content)
            else:
                stream.event(str(item.content.get("event")), item.content)
        return conversation.result
    finally:
        tap.close()


async def _begun(conversation: Conversation) -> Tap:
    await conversation.__aenter__()
    return Tap(conversation, asyncio.get_running_loop())


async def following(found: AsyncGenerator[T, None]) -> T | None:
    """Return what comes next; None at the end."""
    return await anext(found, None)
