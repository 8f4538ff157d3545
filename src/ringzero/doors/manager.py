"""What every door asks: actions, done on threads of this process; events; jobs.

The truth stays in the directories of machines and on their sockets (`ringzero.control.host`): the
manager keeps nothing that a kill -9 could lose, and machines do not know that it is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ringzero.api.table import get
from ringzero.control.host.client import Host
from ringzero.doors.caller import Caller
from ringzero.doors.conversation import Conversation
from ringzero.doors.events import Events
from ringzero.doors.jobs import MOST, Jobs
from ringzero.doors.tokens import Tokens
from ringzero.errors import ConflictError

T = TypeVar("T")

# How many plain actions are done at once. They wait for files and sockets: one that asks a machine
# which does not answer has a thread for half a minute, and takes it from no other.
_WORKERS = 64
# How many that stream: each has a thread, and a connection to a machine's process.
_CONVERSATIONS = 256


class Manager:
    """The actions of a user's host for doors; its methods are called on the event loop."""

    def __init__(self, host: Host, events: Events, tokens: Tokens) -> None:
        self.host = host
        self.events = events
        self.tokens = tokens
        self.jobs = Jobs(self.call, self.converse)
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="action")
        self._long = ThreadPoolExecutor(MOST, thread_name_prefix="job")
        # Whoever sends to a machine that takes nothing waits, and keeps nobody else waiting.
        self._senders = ThreadPoolExecutor(_CONVERSATIONS, thread_name_prefix="input")
        self._talking: set[Conversation] = set()
        self._parts: dict[type, Any] = {}

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        machine: str | None = None,
        *,
        caller: Caller,
        long: bool = False,
    ) -> Any:
        """Do the action called `name`; return plain data. Raises RingzeroError.

        One that is `long` takes no thread from those that answer soon.
        """
        caller.require(get(name))
        return await self.work(self.host.call, name, arguments, machine, long=long)

    async def work(self, act: Callable[..., T], *arguments: Any, long: bool = False) -> T:
        """Return what `act` does on a thread. What goes on when nobody waits any more, goes on."""
        loop = asyncio.get_running_loop()
        workers = self._long if long else self._workers
        return await asyncio.shield(loop.run_in_executor(workers, act, *arguments))

    def converse(
        self,
        name: str,
        arguments: Mapping[str, Any],
        machine: str | None = None,
        *,
        caller: Caller,
    ) -> Conversation:
        """Begin an action that streams. Raises ForbiddenError, ConflictError."""
        action = get(name)
        caller.require(action)
        if len(self._talking) >= _CONVERSATIONS:
            raise ConflictError(
                f"{_CONVERSATIONS} commands and consoles are open",
                hint="close some, or ask again later",
            )
        given = action.check(arguments)
        conversation = Conversation(
            lambda stream: self.host.call(name, given, machine, stream),
            self._talking.discard,
            self._senders,
        )
        conversation.start(name)
        self._talking.add(conversation)
        return conversation

    def part(self, kind: type[T]) -> T:
        """Return what a door keeps beside its connections, as long as the daemon runs: one each."""
        if kind not in self._parts:
            self._parts[kind] = kind()
        found: T = self._parts[kind]
        return found

    async def close(self) -> None:
        """End conversations; plain actions that are under way come to their end."""
        for conversation in list(self._talking):
            conversation.close()
        await self.jobs.close()
        for workers in (self._workers, self._long, self._senders):
            workers.shutdown(wait=False, cancel_futures=True)
