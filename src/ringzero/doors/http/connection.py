"""One connection of a client that speaks HTTP/1.1.

A client that is slow, says half of what it wants or nothing, holds nobody up: each wait has a
bound. Lengths are bounded by h11 (the head) and by who reads a body.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus

import h11

from ringzero.doors.http.messages import Request, Response
from ringzero.errors import RingzeroError
from ringzero.version import __version__

# The longest head of a request: lines of tokens and of long paths fit, in bytes.
_MAX_HEAD = 32 << 10
_READ = 64 << 10
# How long a client may be silent between requests, take for the head of one, be silent within its
# body, and take nothing of a response, in seconds.
_IDLE, _PATIENCE = 75.0, 30.0
# How often it is looked whether one who waits for a response is still there, in seconds.
_LOOK = 1.0
# How long, and for how many bytes, one who still sends is listened to before the end.
_LINGER, _MOST_LINGERED = 2.0, 4 << 20
_INTERNAL = 500

# What speaks on a connection that became a WebSocket: with the request, and what came behind it.
Upgrade = Callable[[Request, bytes], Awaitable[None]]


class HttpConnection:
    """Serves requests until the client leaves, or one of them becomes a WebSocket."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handle: Callable[[Request], Awaitable[Response]],
        upgrade: Upgrade,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._handle = handle
        self._upgrade = upgrade
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)

    async def serve(self) -> None:
        """Serve. Raises ConnectionError, TimeoutError where the client does not go on."""
        while True:
            try:
                request = await self._request()
                if request is None:
                    return
                if request.wants_socket:
                    await self._upgrade(request, self._http.trailing_data[0])
                    return
                await self._respond(request)
            except h11.RemoteProtocolError as fault:
                error = RingzeroError(f"no request of HTTP/1.1: {fault}")
                if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await self._send(Response.error(error, fault.error_status_hint), alone=True)
                    await self._linger()
                return
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                if self._http.their_state is h11.SEND_BODY:
                    await self._linger()
                return
            self._http.start_next_cycle()

    async def _request(self) -> Request | None:
        """Return the next request; None where the client leaves."""
        event = await self._next(_IDLE)
        if not isinstance(event, h11.Request):
            return None
        headers: dict[str, str] = {}
        for name, value in event.headers:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        return Request(
            event.method.decode("latin-1"), event.target.decode("latin-1"), headers, self
        )

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the bytes of the body of the request at hand."""
        if self._http.they_are_waiting_for_100_continue:
            await self._write(
                self._http.send(h11.InformationalResponse(status_code=100, headers=[]))
            )
        while self._http.their_state is h11.SEND_BODY:
            event = await self._next(_PATIENCE)
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif not isinstance(event, h11.EndOfMessage):
                raise ConnectionError("the client left within a request")

    async def _next(self, patience: float) -> object:
        now = asyncio.get_running_loop().time
        end, begun = now() + patience, False
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            data = await asyncio.wait_for(self._reader.read(_READ), end - now())
            self._http.receive_data(data)
            if not begun:
                # Once a request has begun, the rest of its head is to follow, however it comes.
                end, begun = now() + min(patience, _PATIENCE), True

    async def _respond(self, request: Request) -> None:
        try:
            response = await self._handled(request)
        except (ConnectionError, TimeoutError, h11.RemoteProtocolError):
            raise
        except Exception:
            # Nothing of the process's inside goes to a client.
            traceback.print_exc(file=sys.stderr)
            fault = RingzeroError("a fault of `ringzero serve`", hint="its log has more")
            response = Response.error(fault, _INTERNAL)
        # What is left of a body is not wanted any more: the connection ends behind the answer.
        alone = self._http.their_state is h11.SEND_BODY and not await self._rest()
        await self._send(response, alone=alone, head=request.method == "HEAD")

    async def _handled(self, request: Request) -> Response:
        """Return the response; raises ConnectionError where nobody is there for it any more."""
        if not request.headers.keys() & {"content-length", "transfer-encoding"}:
            # Its end follows from its head.
            self._http.next_event()
        handling = asyncio.ensure_future(self._handle(request))
        try:
            while not (await asyncio.wait((handling,), timeout=_LOOK))[0]:
                # Who leaves within a body is noticed by who reads it.
                if self._http.their_state is not h11.SEND_BODY and self._has_left():
                    raise ConnectionError("the client has left")
            return handling.result()
        finally:
            handling.cancel()

    def _has_left(self) -> bool:
        """Whether the other side is gone; one that has only said all it wanted to is not."""
        if self._writer.transport.is_closing():
            return True
        link = self._writer.get_extra_info("socket")
        poller = select.poll()
        poller.register(link.fileno(), 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poller.poll(0))

    async def _rest(self) -> bool:
        """Read what is left of a short body; whether that was all."""
        left = _READ
        with contextlib.suppress(ConnectionError, TimeoutError):
            if self._http.they_are_waiting_for_100_continue:
                return False
            async for part in self:
                left -= len(part)
                if left < 0:
                    return False
            return True
        return False

    async def _linger(self) -> None:
        """Read on for a moment: closing now would take an answer from a client that still sends."""
        with contextlib.suppress(OSError, TimeoutError):
            if self._writer.can_write_eof():
                self._writer.write_eof()
            async with asyncio.timeout(_LINGER):
                left = _MOST_LINGERED
                while left > 0 and (data := await self._reader.read(_READ)):
                    left -= len(data)

    async def _send(self, response: Response, *, alone: bool = False, head: bool = False) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if response.parts is not None:
                # However this ends, who has made them hears of it.
                stack.push_async_callback(response.parts.aclose)
            await self._send_all(response, alone=alone, head=head)

    async def _send_all(self, response: Response, *, alone: bool, head: bool) -> None:
        headers = [("server", f"ringzero/{__version__}"), *response.headers]
        # RFC 9110 section 8.6: such a response has no length.
        bare = response.status == HTTPStatus.NO_CONTENT
        if not bare:
            headers.append(("content-type", response.type))
        if response.parts is None and not bare:
            headers.append(("content-length", str(len(response.content))))
        reason = HTTPStatus(response.status).phrase
        if alone:
            headers.append(("connection", "close"))
        await self._write(
            self._http.send(
                h11.Response(status_code=response.status, headers=headers, reason=reason)
            )
        )
        if head:
            await self._write(self._http.send(h11.EndOfMessage()))
            return
        if response.content:
            await self._write(self._http.send(h11.Data(data=response.content)))
        if response.parts is not None:
            async for part in response.parts:
                await self._write(self._http.send(h11.Data(data=part)))
        await self._write(self._http.send(h11.EndOfMessage()))

    async def _write(self, data: bytes | None) -> None:
        if data:
            self._writer.write(data)
            await asyncio.wait_for(self._writer.drain(), _PATIENCE)
