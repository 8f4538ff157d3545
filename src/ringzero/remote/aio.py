"""The client for asyncio: a host's actions and a machine's, as coroutines.

async with AsyncClient("https://server:8443", token=text) as host:
    await host.machine("web").restart(timeout=5)
    async for event in host.watch():
        print(event.machine, event.kind)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    Self,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from ringzero.api import table
from ringzero.api.action import Action, Scope, Stream, from_plain
from ringzero.api.host import HostActions
from ringzero.api.machine import MachineActions
from ringzero.api.protocol import STDOUT
from ringzero.api.values import Event
from ringzero.errors import ControlError, InvalidValueError, ProtocolError, from_dict
from ringzero.remote import messages
from ringzero.remote.address import Address
from ringzero.remote.conversation import Conversation, Tap, done_on
from ringzero.remote.endpoint import WAY, Endpoint, Link
from ringzero.remote.machine import Machine
from ringzero.remote.messages import Answer, Asked, Data, Exchange

if TYPE_CHECKING:
    from ringzero.api.command import CommandResult
    from ringzero.api.options import RunOptions

P = ParamSpec("P")
R = TypeVar("R")

# Connections that are kept for the next request.
_KEPT = 4
# How long a job is waited for in one request, in seconds.
_WAIT = 30.0


def awaited(
    method: Callable[Concatenate[Any, P], R],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    """Return an action's method as one that is awaited: it returns what `perform` does."""
    return cast(Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], method)


class AsyncMachine:
    """A machine of another host. Raises what its action raises there, and ControlError."""

    scope = Scope.MACHINE

    def __init__(self, client: AsyncClient, name: str) -> None:
        self.client = client
        self.name = name

    async def perform(self, action: Action, arguments: dict[str, Any], stream: Stream) -> Any:
        """Do it there, and return a value of the action's result type."""
        found = await self.client.do(action, arguments, stream, self.name)
        if action.name == "rename":
            self.name = str(arguments["name"])
        return found

    inspect = awaited(MachineActions.inspect)
    ping = awaited(MachineActions.ping)
    start = awaited(MachineActions.start)
    pause = awaited(MachineActions.pause)
    resume = awaited(MachineActions.resume)
    stop = awaited(MachineActions.stop)
    restart = awaited(MachineActions.restart)
    kill = awaited(MachineActions.kill)
    wait = awaited(MachineActions.wait)
    rename = awaited(MachineActions.rename)
    metadata = awaited(MachineActions.metadata)
    describe = awaited(MachineActions.describe)
    redefine = awaited(MachineActions.redefine)
    next = awaited(MachineActions.next)
    remove = awaited(MachineActions.remove)
    fork = awaited(MachineActions.fork)
    snapshot = awaited(MachineActions.snapshot)
    revert = awaited(MachineActions.revert)
    revert_disks = awaited(MachineActions.revert_disks)
    disk_jobs = awaited(MachineActions.disk_jobs)
    start_disk_job = awaited(MachineActions.start_disk_job)
    order_disk_job = awaited(MachineActions.order_disk_job)
    disk_exports = awaited(MachineActions.disk_exports)
    export_disk = awaited(MachineActions.export_disk)
    unexport_disk = awaited(MachineActions.unexport_disk)
    ports = awaited(MachineActions.ports)
    publish = awaited(MachineActions.publish)
    unpublish = awaited(MachineActions.unpublish)
    connect = awaited(MachineActions.connect)
    disconnect = awaited(MachineActions.disconnect)
    shares = awaited(MachineActions.shares)
    share = awaited(MachineActions.share)
    unshare = awaited(MachineActions.unshare)
    exec = awaited(MachineActions.exec)
    put_archive = awaited(MachineActions.put_archive)
    get_archive = awaited(MachineActions.get_archive)
    console = awaited(MachineActions.console)
    gdb = awaited(MachineActions.gdb)
    logs = awaited(MachineActions.logs)

    @overload
    async def run(
        self,
        command: str | Sequence[str],
        *,
        text: Literal[False] = False,
        **options: Unpack[RunOptions],
    ) -> CommandResult[bytes]: ...

    @overload
    async def run(
        self, command: str | Sequence[str], *, text: Literal[True], **options: Unpack[RunOptions]
    ) -> CommandResult[str]: ...

    async def run(
        self, command: str | Sequence[str], *, text: bool = False, **options: Unpack[RunOptions]
    ) -> CommandResult[bytes] | CommandResult[str]:
        """Run a command in the guest and return what it printed; as `ringzero.Machine.run`."""
        machine = self._blocking()
        return await asyncio.to_thread(lambda: machine.run(command, text=text, **options))

    async def copy_in(
        self,
        source: str | Path | Sequence[str | Path],
        target: str,
        *,
        follow: bool = False,
        owners: bool = False,
    ) -> list[str]:
        """Copy files and folders of this host to `target` of the guest; return what was skipped."""
        machine = self._blocking()
        return await asyncio.to_thread(
            machine.copy_in, source, target, follow=follow, owners=owners
        )

    async def copy_out(
        self, source: str, target: str | Path, *, follow: bool = False, owners: bool = False
    ) -> list[str]:
        """Copy a file or folder of the guest to `target` of this host; return what was skipped."""
        machine = self._blocking()
        return await asyncio.to_thread(
            machine.copy_out, source, target, follow=follow, owners=owners
        )

    def open(self, name: str, **arguments: Any) -> Conversation:
        """Return a conversation with an action that streams: "exec", "console" ..."""
        action = table.get(name)
        if not action.wants_stream or action.scope is not Scope.MACHINE:
            raise InvalidValueError(f"{name!r} is no action of a machine that streams")
        return Conversation(self.client.endpoint, action, action.check(arguments), self.name)

    def sibling(self, name: str) -> AsyncMachine:
        """Return another machine of the same host."""
        return self.client.machine(name)

    @property
    def endpoint(self) -> Endpoint:
        """The way to its host."""
        return self.client.endpoint

    def _blocking(self) -> Machine:
        loop = asyncio.get_running_loop()
        return Machine(self, lambda work: done_on(loop, work))


class AsyncClient:
    """Another host. Raises what its actions raise there, and ControlError, HostError.

    `place` is ssh://[USER@]HOST[:PORT][/PATH], https://HOST[:PORT] or unix:///PATH. Over https a
    `token` lets one in (`ringzero serve token create`), and `authorities` is a file of certificates
    that sign the server's, besides those that this host trusts.
    """

    scope = Scope.HOST

    def __init__(
        self, place: str, *, token: str | None = None, authorities: str | Path | None = None
    ) -> None:
        path = None if authorities is None else Path(authorities)
        self.endpoint = Endpoint(Address.parse(place), token, path)
        self._idle: list[tuple[Link, Exchange]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave; conversations are their users' to end."""
        while self._idle:
            self._idle.pop()[0].close()

    def machine(self, name: str) -> AsyncMachine:
        """Return the machine called `name`; whether there is one, its actions tell."""
        return AsyncMachine(self, name)

    async def perform(self, action: Action, arguments: dict[str, Any], stream: Stream) -> Any:
        """Do it there, and return a value of the action's result type."""
        return await self.do(action, arguments, stream)

    machines = awaited(HostActions.machines)
    define = awaited(HostActions.define)
    images = awaited(HostActions.images)
    snapshots = awaited(HostActions.snapshots)
    remove_snapshot = awaited(HostActions.remove_snapshot)
    export_snapshot = awaited(HostActions.export_snapshot)
    import_snapshot = awaited(HostActions.import_snapshot)
    networks = awaited(HostActions.networks)
    create_network = awaited(HostActions.create_network)
    describe_network = awaited(HostActions.describe_network)
    update_network = awaited(HostActions.update_network)
    remove_network = awaited(HostActions.remove_network)
    storage_pools = awaited(HostActions.storage_pools)
    define_storage_pool = awaited(HostActions.define_storage_pool)
    change_storage_pool = awaited(HostActions.change_storage_pool)
    undefine_storage_pool = awaited(HostActions.undefine_storage_pool)
    volumes = awaited(HostActions.volumes)
    create_volume = awaited(HostActions.create_volume)
    clone_volume = awaited(HostActions.clone_volume)
    resize_volume = awaited(HostActions.resize_volume)
    wipe_volume = awaited(HostActions.wipe_volume)
    remove_volume = awaited(HostActions.remove_volume)
    put_volume = awaited(HostActions.put_volume)
    get_volume = awaited(HostActions.get_volume)
    events = awaited(HostActions.events)

    async def watch(self) -> AsyncGenerator[Event, None]:
        """Yield what happens to machines from now on, until the host's server ends."""
        async with Conversation(self.endpoint, table.get("events"), {}) as conversation:
            async for item in conversation.items():
                if isinstance(item, Data) and item.number == STDOUT and item.content:
                    yield _event(item.content)

    async def version(self) -> str:
        """Return the version of ringzero there."""
        told = await self.ask(Asked("GET", f"/{messages.ROOT}/version"), WAY)
        return str(told.get("version")) if isinstance(told, dict) else ""

    async def begin(
        self, name: str, arguments: Mapping[str, Any] | None = None, machine: str | None = None
    ) -> AsyncJob:
        """Have the action called `name` done as a job, which goes on when this client leaves."""
        action = table.get(name)
        asked = messages.ask(action, machine, action.check(arguments or {}))
        if asked.body is None:
            raise InvalidValueError(f"{name!r} only reads, and is no job")
        told = await self.ask(asked, WAY, prefer="respond-async")
        return AsyncJob(self, _object(told))

    async def job(self, identifier: str) -> AsyncJob:
        """Return a job by its identifier. Raises NotFoundError."""
        job = AsyncJob(self, {"id": identifier})
        await job.refresh()
        return job

    async def do(
        self,
        action: Action,
        arguments: Mapping[str, Any],
        stream: Stream,
        machine: str | None = None,
    ) -> Any:
        """Do an action, and return a value of its result type."""
        if not action.wants_stream:
            bound = None if action.streams else action.answer_time(arguments) + WAY
            told = await self.ask(messages.ask(action, machine, arguments), bound)
            return from_plain(action.result, told)
        async with Conversation(self.endpoint, action, arguments, machine) as conversation:
            stream.begin(Tap(conversation, asyncio.get_running_loop()))
            async for item in conversation.items():
                if isinstance(item, Data):
                    stream.data(item.number, item.content)
                else:
                    stream.event(str(item.content.get("event")), item.content)
            return conversation.result

    async def ask(self, asked: Asked, bound: float | None, **headers: str) -> Any:
        """Return the answer to one request, as plain data.

        Raises the error that it tells, and ControlError where it takes longer than `bound` seconds.
        """
        if bound is not None:
            bound += self.endpoint.coming
        try:
            async with asyncio.timeout(bound):
                return messages.read(await self._exchange(asked, headers))
        except TimeoutError:
            raise ControlError(
                f"{self.endpoint.address} has not answered within {bound:g} seconds"
            ) from None

    async def _exchange(self, asked: Asked, headers: Mapping[str, str]) -> Answer:
        while self._idle:
            link, exchange = self._idle.pop()
            if link.stale:
                link.close()
                continue
            try:
                return await self._converse(link, exchange, asked, headers)
            except ControlError:
                # The server may have ended the connection meanwhile, which harms nobody who has
                # only asked; what changes something is not asked for twice.
                if exchange.begun or asked.method != "GET":
                    raise
        endpoint = self.endpoint
        exchange = Exchange(endpoint.address.authority, endpoint.token)
        return await self._converse(await endpoint.connect(), exchange, asked, headers)

    async def _converse(
        self, link: Link, exchange: Exchange, asked: Asked, headers: Mapping[str, str]
    ) -> Answer:
        try:
            with self.endpoint.speaking():
                # What cannot be sent any more may have been answered already.
                with contextlib.suppress(OSError):
                    await link.send(exchange.request(asked, headers))
                while (answer := exchange.feed(await link.read())) is None:
                    pass
        except BaseException:
            link.close()
            raise
        if exchange.reusable and len(self._idle) < _KEPT:
            self._idle.append((link, exchange))
        else:
            link.close()
        return answer


class AsyncJob:
    """Something that a host does, whoever waits for it. `facts` is what it said of it last."""

    def __init__(self, client: AsyncClient, facts: dict[str, Any]) -> None:
        self._client = client
        self.facts = facts

    @property
    def id(self) -> str:
        """What it is called."""
        return str(self.facts["id"])

    @property
    def status(self) -> str:
        """Return running, done, failed or cancelled, as it was last told."""
        return str(self.facts.get("status"))

    async def refresh(self, wait: float = 0.0) -> None:
        """Ask what it is doing; `wait` for its end, for so many seconds at most."""
        target = f"/{messages.ROOT}/jobs/{self.id}"
        told = await self._client.ask(Asked("GET", f"{target}?wait={wait:g}"), wait + WAY)
        self.facts = _object(told)

    async def wait(self) -> Any:
        """Wait for its end, and return its result. Raises the error that it ended with."""
        while True:
            await self.refresh(_WAIT)
            if self.status == "running":
                continue
            if isinstance(error := self.facts.get("error"), dict):
                raise from_dict(error)
            if self.status != "done":
                raise ControlError(f"the job {self.id} was {self.status}")
            action = table.get(self.facts.get("action"))
            return from_plain(action.result, self.facts.get("result"))

    async def cancel(self) -> None:
        """End it. Raises ConflictError for one that cannot be ended."""
        target = f"/{messages.ROOT}/jobs/{self.id}"
        self.facts = _object(await self._client.ask(Asked("DELETE", target), WAY))


def _object(told: Any) -> dict[str, Any]:
    if not isinstance(told, dict) or not isinstance(told.get("id"), str):
        raise ProtocolError("an answer that is no job")
    return told


def _event(line: bytes) -> Event:
    try:
        found = Event.from_dict(json.loads(line))
    except (ValueError, RecursionError, AttributeError):
        found = None
    if found is None:
        raise ProtocolError("a line that is no event")
    return found
