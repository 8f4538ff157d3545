"""What a procedure's handler has to do with: one connection, its streams, the manager.

    @handles("DOMAIN_SUSPEND")
    async def suspend(context, domain, **_):
        await context.act("pause", {}, machine)
        return {}

A handler gets the procedure's arguments by name and returns its results by name. It raises
`RefusedError` for an error of libvirt's own, or any RingzeroError, which is told as the nearest
of them. That of a procedure which opens a stream gets the `call`, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ringzero.doors.libvirt.faults import Error, ErrorCode, ErrorDomain
from ringzero.errors import RingzeroError
from ringzero.records import replace

if TYPE_CHECKING:
    from ringzero.doors.caller import Caller
    from ringzero.doors.conversation import Conversation, Output
    from ringzero.doors.events import Listener
    from ringzero.doors.libvirt.session import Session
    from ringzero.doors.manager import Manager

T = TypeVar("T")
Results = dict[str, Any]
Handler = Callable[..., Awaitable[Results]]
Function = TypeVar("Function", bound=Callable[..., Any])

# How long a guest may take to take a command, in seconds; and what is read of its output, in bytes.
AGENT_WAIT, _MOST_OUTPUT = 5.0, 1 << 20

HANDLERS: dict[str, Handler] = {}
# The nearest of libvirt's errors to each kind of ours; another is a failed operation.
_CODES = {
    "invalid-value": ErrorCode.INVALID_ARG,
    "config": ErrorCode.CONFIG_UNSUPPORTED,
    "conflict": ErrorCode.OPERATION_INVALID,
    "forbidden": ErrorCode.OPERATION_DENIED,
    "timeout": ErrorCode.OPERATION_TIMEOUT,
    "disk-locked": ErrorCode.RESOURCE_BUSY,
    "disk-unsupported": ErrorCode.OPERATION_UNSUPPORTED,
    "missing-file": ErrorCode.SYSTEM_ERROR,
    "host": ErrorCode.SYSTEM_ERROR,
    "control": ErrorCode.OPERATION_FAILED,
}


class RefusedError(RingzeroError):
    """An answer that is an error of libvirt's."""

    kind = "refused"

    def __init__(
        self, code: ErrorCode, message: str, domain: ErrorDomain = ErrorDomain.DOMAIN
    ) -> None:
        super().__init__(message)
        self.error = Error(code, domain, message)


async def _nothing() -> None:
    pass


def error_of(fault: RingzeroError) -> Error:
    """Return an error as libvirt's clients know it; the hint stands behind the message."""
    if isinstance(fault, RefusedError):
        return fault.error
    message = fault.message + (f" ({fault.hint})" if fault.hint else "")
    code = _CODES.get(fault.kind, ErrorCode.OPERATION_FAILED)
    return Error(code, ErrorDomain.DOMAIN, message)


def handles(*names: str) -> Callable[[Function], Function]:
    """Return a decorator that binds a handler to procedures by their names."""

    def bind(function: Function) -> Function:
        for name in names:
            if name in HANDLERS:
                raise ValueError(f"{name} has two handlers")
            HANDLERS[name] = function
        return function

    return bind


class StreamSide(Protocol):
    """Who has the server's side of a stream; on the event loop."""

    def coming(self, count: int) -> asyncio.Future[None] | None:
        """So many bytes, or a hole of them, will be handed over by `data` or `hole`.

        Returns what to wait for before the client's next call, where they end the stream.
        """

    async def data(self, data: bytes) -> None:
        """Take bytes of the client's."""

    async def hole(self, length: int) -> None:
        """Take so many bytes of nothing."""

    async def end(self) -> None:
        """The client has written, or read, all; raises where that was not good."""

    def close(self) -> None:
        """The client has left the stream, or the server ends it."""


class Context:
    """One connection, for handlers. `uri` is what the client opened."""

    def __init__(self, manager: Manager, caller: Caller, session: Session) -> None:
        self.manager = manager
        self.caller = caller
        self.session = session
        self.uri = ""
        self.streams: dict[int, StreamSide] = {}
        # What runs beside calls: readers of streams, whoever hears events.
        self.tasks: set[asyncio.Task[None]] = set()
        self.later: list[Callable[[], Awaitable[None]]] = []
        self.send: Callable[[], None] = lambda: None
        self.drain: Callable[[], Awaitable[None]] = _nothing
        self.ended: Callable[[int], None] = lambda serial: None
        self.leave: Callable[[], None] = lambda: None
        self.listening = False
        self._heard = contextlib.ExitStack()

    async def act(self, name: str, arguments: Mapping[str, Any], machine: str | None = None) -> Any:
        """Do an action; return plain data. Raises RingzeroError."""
        return await self.manager.call(name, arguments, machine, caller=self.caller)

    async def work(self, act: Callable[..., T], *arguments: Any, long: bool = False) -> T:
        """Return what `act` does on a thread: what reads files of machines.

        It is done as a whole, also where the client leaves. What is `long` writes them, too.
        """
        return await self.manager.work(act, *arguments, long=long)

    def converse(
        self, name: str, arguments: Mapping[str, Any], machine: str | None = None
    ) -> Conversation:
        """Begin an action that streams."""
        return self.manager.converse(name, arguments, machine, caller=self.caller)

    async def command(
        self, machine: str, words: list[str], data: bytes = b"", wait: float = AGENT_WAIT
    ) -> Output:
        """Run a command in a guest; `wait` is how long it may take to begin, in seconds, 0: any.

        Raises RefusedError.
        """
        asked = {"words": words, "stdin": bool(data), "wait": wait}
        try:
            return await self.converse("exec", asked, machine).output(data, _MOST_OUTPUT)
        except RingzeroError as fault:
            raise RefusedError(ErrorCode.AGENT_UNRESPONSIVE, fault.message) from fault

    async def output(self, machine: str, words: list[str]) -> str:
        """Return what a command in a guest prints. Raises RefusedError where it fails."""
        found = await self.command(machine, words)
        if found.status:
            text = f"{words[0]} in the guest ended with status {found.status}"
            raise RefusedError(ErrorCode.OPERATION_FAILED, text)
        return found.stdout.decode("utf-8", "replace")

    def only_read(self) -> None:
        """Refuse from now on what may change something: the client has asked for that."""
        self.session.read_only = True
        self.caller = replace(self.caller, reads=True)

    def warn(self, machine: str, warnings: Sequence[str]) -> None:
        """Tell the log what of a client's XML is kept and not carried out."""
        for warning in warnings:
            print(f"ringzero: {machine}: {warning}", file=sys.stderr, flush=True)

    def abort(self, serial: int, fault: RingzeroError) -> None:
        """End a stream because of an error."""
        side = self.streams.pop(serial, None)
        if side is not None:
            side.close()
        self.ended(serial)
        self.session.abort(serial, error_of(fault))
        self.send()

    def hear(self) -> Listener:
        """Return one who hears events until the connection ends. Raises ConflictError."""
        return self._heard.enter_context(self.manager.events.listen())

    def beside_later(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run something until the connection ends, once the call at hand is answered."""
        self.later.append(work)

    def beside(self, work: Awaitable[None]) -> None:
        """Run something until the connection ends."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def close(self) -> None:
        """The connection has ended."""
        for side in self.streams.values():
            side.close()
        self.streams.clear()
        for task in self.tasks:
            task.cancel()
        self._heard.close()

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if task.cancelled() or isinstance(task.exception(), ConnectionError):
            # The client has left, or is left.
            return
        if task.exception() is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a libvirt connection's task", "exception": task.exception()}
            )
