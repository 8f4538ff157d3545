"""Does what requests of one connection ask for."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from ringzero.api.action import Action
from ringzero.api.protocol import STDIN, STDOUT
from ringzero.doors.caller import Caller
from ringzero.doors.conversation import Conversation, Data
from ringzero.doors.events import Listener
from ringzero.doors.http.messages import BYTES, Request, Response
from ringzero.doors.http.websocket import INTERNAL, PROTOCOL, WebSocket
from ringzero.doors.jobs import Job
from ringzero.doors.rest import openapi, routes
from ringzero.errors import (
    HostError,
    InvalidValueError,
    NotFoundError,
    ProtocolError,
    RingzeroError,
    TimeoutExpiredError,
    UnauthorizedError,
)
from ringzero.version import __version__

if TYPE_CHECKING:
    from ringzero.doors.manager import Manager

# Comments that keep a connection of events open, every so many seconds.
_HEARTBEAT = 15.0
# The longest that a client may wait for a job in one request, in seconds.
_LONGEST_WAIT = 60.0
# Of an event's number: more have not happened.
_DIGITS = 18
# What a command without a WebSocket may print, in bytes of each of its outputs.
_MAX_OUTPUT = 4 << 20
# Actions that take a request's body as their input, and those whose output is a response's: its
# head cannot say that it broke off, the connection does.
_TAKES = ("put_archive", "put_volume")
_GIVES = {"get_archive": "application/x-tar", "get_volume": BYTES, "logs": BYTES}


class Service:
    """The HTTP API for one connection; `caller` is None where each request needs a token."""

    def __init__(
        self,
        manager: Manager,
        caller: Caller | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._manager = manager
        self._caller = caller
        self._streams = reader, writer

    async def respond(self, request: Request) -> Response:
        """Return the response to a request."""
        try:
            return await self._respond(request, self._who(request))
        except UnauthorizedError as fault:
            asked = Response.json({"error": fault.to_dict()}, 401)
            return Response(401, asked.content, headers=(("www-authenticate", "Bearer"),))
        except routes.MethodError as fault:
            told = Response.error(fault, 405)
            return Response(405, told.content, headers=(("allow", ", ".join(fault.allowed)),))
        except RingzeroError as fault:
            return Response.error(fault, routes.status_of(fault))

    def _who(self, request: Request) -> Caller:
        if self._caller is not None:
            return self._caller
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        found = None
        try:
            if scheme.lower() == "bearer":
                found = self._manager.tokens.caller(text.strip())
        except HostError as fault:
            # A stranger does not hear of the host's files.
            print(f"ringzero: no token lets anybody in: {fault.message}", file=sys.stderr)
        if found is None:
            raise UnauthorizedError("a token is needed", hint="send `Authorization: Bearer TOKEN`")
        return found

    async def _respond(self, request: Request, caller: Caller) -> Response:
        segments = _behind_version(request)
        match (request.method, *segments):
            case ("GET", "openapi.json"):
                return _description()
            case ("GET", "version"):
                return Response.json({"version": __version__, "api": routes.ROOT})
            case ("GET", "events"):
                return await self._events(request)
            case ("GET", "jobs"):
                return Response.json([job.to_dict() for job in self._manager.jobs.all()])
            case ("GET", "jobs", identifier):
                return await self._job(identifier, request)
            case ("DELETE", "jobs", identifier):
                job = self._manager.jobs.cancel(identifier, caller=caller)
                return Response.json(job.to_dict())
        call = routes.find(request.method, segments, request.query)
        caller.require(call.action)
        if call.action.name in _TAKES:
            return await self._take(request, call, caller)
        body = {} if request.method in ("GET", "HEAD") else await request.json()
        if call.action.name == "exec":
            return await self._exec(call, body, caller)
        arguments = call.action.check(routes.merged(call, body))
        if call.action.name in _GIVES:
            return await self._give(call, arguments, caller)
        if call.action.wants_stream:
            raise InvalidValueError(
                f"{call.action.name!r} needs a WebSocket", hint="send the same with Upgrade"
            )
        if "respond-async" in request.headers.get("prefer", ""):
            job = self._manager.jobs.begin(call.action.name, arguments, call.machine, caller=caller)
            return _accepted(job)
        if call.action.streams:
            return Response.json(await self._streamed(call, arguments, caller))
        return Response.json(
            await self._manager.call(call.action.name, arguments, call.machine, caller=caller)
        )

    def _converse(
        self, call: routes.Call, arguments: Mapping[str, Any], caller: Caller
    ) -> Conversation:
        return self._manager.converse(call.action.name, arguments, call.machine, caller=caller)

    async def _streamed(
        self, call: routes.Call, arguments: Mapping[str, Any], caller: Caller
    ) -> Any:
        """Return an answer that may take long.

        Where its client leaves, what only reads ends, and what does something goes on.
        """
        conversation = self._converse(call, arguments, caller)
        answer = asyncio.ensure_future(_answer_of(conversation))
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            return await asyncio.shield(answer)
        finally:
            if call.action.reads:
                conversation.close()

    # ---- jobs and events --------------------------------------------------------

    async def _job(self, identifier: str, request: Request) -> Response:
        wait = dict(request.query).get("wait")
        if wait is not None:
            try:
                seconds = float(wait)
            except ValueError:
                seconds = math.nan
            if math.isnan(seconds):
                raise InvalidValueError(f"wait={wait[:64]!r} is no number of seconds")
            with contextlib.suppress(TimeoutExpiredError):
                bound = min(max(seconds, 0.0), _LONGEST_WAIT)
                await self._manager.jobs.wait(identifier, bound)
        return Response.json(self._manager.jobs.get(identifier).to_dict())

    async def _events(self, request: Request) -> Response:
        text = request.headers.get("last-event-id") or dict(request.query).get("after")
        if text is not None and (not text.isdecimal() or len(text) > _DIGITS):
            raise InvalidValueError(f"{text[:64]!r} is no event's number")
        parts = _told(self._manager.events.listen(None if text is None else int(text)))
        return Response(
            200,
            await anext(parts),
            "text/event-stream",
            headers=(("cache-control", "no-store"),),
            parts=parts,
        )

    # ---- commands and archives --------------------------------------------------

    async def _exec(self, call: routes.Call, body: dict[str, Any], caller: Caller) -> Response:
        """Run a command to its end; `input` in the body is its input, as text."""
        text = body.pop("input", None)
        if not isinstance(text, str | None):
            raise InvalidValueError("the argument 'input' must be text")
        try:
            data = (text or "").encode()
        except UnicodeEncodeError:
            raise InvalidValueError("the argument 'input' has half of a character in it") from None
        arguments = call.action.check(routes.merged(call, body) | {"stdin": bool(data)})
        conversation = self._converse(call, arguments, caller)
        found = await conversation.output(data, _MAX_OUTPUT)
        return Response.json(
            {
                "status": found.status,
                "stdout": found.stdout.decode("utf-8", "replace"),
                "stderr": found.stderr.decode("utf-8", "replace"),
                "cut": found.cut,
            }
        )

    async def _take(self, request: Request, call: routes.Call, caller: Caller) -> Response:
        conversation = self._converse(call, call.action.check(call.arguments), caller)
        answer = asyncio.ensure_future(_answer_of(conversation))
        try:
            async for part in request.body:
                if answer.done():
                    break
                await conversation.send(part)
            await conversation.send(b"")
            return Response.json(await answer)
        finally:
            conversation.close()
            answer.cancel()

    async def _give(
        self, call: routes.Call, arguments: Mapping[str, Any], caller: Caller
    ) -> Response:
        conversation = self._converse(call, arguments, caller)
        parts = _bytes_of(conversation)
        # What goes wrong before the first bytes is an answer of its own.
        first = await anext(parts, None)
        if first is None:
            return Response(200, b"", _GIVES[call.action.name])
        return Response(200, first, _GIVES[call.action.name], parts=parts)

    # ---- WebSockets -------------------------------------------------------------

    async def upgrade(self, request: Request, rest: bytes) -> None:
        """Serve a connection that is to become a WebSocket."""
        socket = WebSocket(*self._streams)
        try:
            socket.begin(request, rest)
            caller = self._who(request)
            call = routes.find_stream(_behind_version(request), request.query)
            caller.require(call.action)
        except ProtocolError:
            raise
        except RingzeroError as fault:
            status = 401 if isinstance(fault, UnauthorizedError) else routes.status_of(fault)
            await socket.reject(status, json.dumps({"error": fault.to_dict()}).encode())
            return
        await socket.accept()
        try:
            await self._talk(socket, call, caller)
            await socket.close()
        except ProtocolError as fault:
            await socket.close(PROTOCOL, fault.message)
        except RingzeroError as fault:
            await socket.send(json.dumps({"error": fault.to_dict()}, default=str))
            await socket.close(INTERNAL, fault.message)

    async def _talk(self, socket: WebSocket, call: routes.Call, caller: Caller) -> None:
        messages = socket.messages()
        arguments = dict(call.arguments)
        if not _is_whole(call.action, arguments):
            first = await anext(messages, None)
            if first is None:
                return
            arguments |= _object(first)
        conversation = self._converse(call, call.action.check(arguments), caller)
        listening = asyncio.ensure_future(_listen(messages, conversation))
        try:
            async for item in conversation.items():
                if isinstance(item, Data):
                    await socket.send(bytes((item.stream,)) + item.content)
                else:
                    await socket.send(json.dumps({**item.content, "event": item.kind}, default=str))
            answer = {"result": await conversation.result()}
            await socket.send(json.dumps(answer, default=str))
        finally:
            conversation.close()
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError, RingzeroError):
                await listening


def _behind_version(request: Request) -> tuple[str, ...]:
    first, *rest = request.segments or ("",)
    if first != routes.ROOT:
        raise NotFoundError(
            f"there is no path {request.target[:200]!r}",
            hint=f"/{routes.ROOT}/openapi.json describes all",
        )
    return tuple(rest)


@functools.cache
def _description() -> Response:
    return Response.json(openapi.document())


def _accepted(job: Job) -> Response:
    told = Response.json(job.to_dict(), 202)
    return Response(202, told.content, headers=(("location", f"/{routes.ROOT}/jobs/{job.id}"),))


def _is_whole(action: Action, arguments: Mapping[str, Any]) -> bool:
    return all(a.name in arguments for a in action.arguments if a.required)


def _object(message: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(message) if isinstance(message, str) else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidValueError("a message of text that is no JSON object")
    return found


async def _listen(messages: AsyncIterator[str | bytes], conversation: Conversation) -> None:
    """Pass on what a client says; its leaving ends the conversation."""
    try:
        async for message in messages:
            if isinstance(message, bytes):
                if not message or message[0] != STDIN:
                    raise ProtocolError("bytes that are no input: they begin with a 0")
                await conversation.send(message[1:])
            else:
                content = _object(message)
                kind = content.pop("event", None)
                if not isinstance(kind, str):
                    raise InvalidValueError('a message without an "event"')
                await conversation.tell(kind, **content)
    finally:
        conversation.close()


async def _answer_of(conversation: Conversation) -> Any:
    async for _ in conversation.items():
        pass
    return await conversation.result()


async def _bytes_of(conversation: Conversation) -> AsyncGenerator[bytes, None]:
    """Yield what comes on the output. Raises what the action raises."""
    try:
        async for item in conversation.items():
            if isinstance(item, Data) and item.stream == STDOUT and item.content:
                yield item.content
        await conversation.result()
    finally:
        conversation.close()


async def _told(listener: Listener) -> AsyncGenerator[bytes, None]:
    """Yield events as lines of an event stream (HTML, "Server-sent events")."""
    with listener:
        yield b": events\n\n"
        while not listener.ended:
            found = await listener.next(_HEARTBEAT)
            if found is None:
                yield b": still here\n\n"
                continue
            data = json.dumps(found.to_dict(), default=str)
            kind = found.event.kind
            yield f"id: {found.number}\nevent: {kind}\ndata: {data}\n\n".encode()
