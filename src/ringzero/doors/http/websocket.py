"""A connection that became a WebSocket (RFC 6455)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from ringzero.doors.http import messages
from ringzero.errors import InvalidValueError, ProtocolError

_READ = 64 << 10
# The longest message of a client, in bytes; and how long it may take nothing of ours, and be
# silent before it is asked whether it is there, and again before it counts as gone, in seconds.
MAX_MESSAGE = 1 << 20
_PATIENCE, _QUIET = 30.0, 30.0
# RFC 6455 section 7.4.1.
NORMAL, PROTOCOL, TOO_LONG, INTERNAL = 1000, 1002, 1009, 1011


class WebSocket:
    """The server's side. Raises ConnectionError where the client has left."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._socket = WSConnection(ConnectionType.SERVER)
        self._sending = asyncio.Lock()
        self._length = 0
        self._rest = b""
        self.open = False

    def begin(self, request: messages.Request, rest: bytes) -> None:
        """Take the request, and what came behind it. Raises ProtocolError."""
        headers = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in request.headers.items()]
        try:
            self._socket.initiate_upgrade_connection(headers, request.target)
        except (RemoteProtocolError, LocalProtocolError) as fault:
            raise ProtocolError(f"no WebSocket is asked for: {fault}") from None
        self._rest = rest

    async def accept(self, subprotocol: str | None = None) -> None:
        """Answer that the connection is a WebSocket now."""
        asked = next((e for e in self._socket.events() if isinstance(e, Request)), None)
        if asked is None:
            raise ProtocolError("no WebSocket is asked for")
        await self._send(AcceptConnection(subprotocol=subprotocol))
        self.open = True
        if self._rest:
            self._receive(self._rest)

    async def reject(self, status: int, content: bytes) -> None:
        """Answer that it does not become one."""
        for _ in self._socket.events():
            pass
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
        ]
        await self._send(RejectConnection(status_code=status, headers=headers, has_body=True))
        await self._send(RejectData(data=content))

    async def send(self, message: str | bytes) -> None:
        """Send a message of text or of bytes."""
        if not self.open:
            raise ConnectionError("the client has left")
        if isinstance(message, str):
            await self._send(TextMessage(data=message))
        else:
            await self._send(BytesMessage(data=message))

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Say that nothing more comes."""
        if self.open:
            self.open = False
            # At most 123 bytes of a reason (RFC 6455 section 5.5).
            short = reason.encode()[:123].decode("utf-8", "ignore")
            await self._send(CloseConnection(code=code, reason=short))

    async def messages(self) -> AsyncIterator[str | bytes]:
        """Yield what the client says until it leaves. Raises InvalidValueError, ProtocolError."""
        text: list[str] = []
        data = bytearray()
        asked = False
        while True:
            for event in self._events():
                if isinstance(event, Message):
                    self._length += len(event.data)
                    if self._length > MAX_MESSAGE:
                        await self.close(TOO_LONG, "a message is too long")
                        raise InvalidValueError(f"a message of more than {MAX_MESSAGE} bytes")
                    if isinstance(event.data, bytes | bytearray):
                        data += event.data
                    elif event.data:
                        # Pieces without a byte have no end, and would fill the memory.
                        text.append(event.data)
                    if event.message_finished:
                        yield "".join(text) if isinstance(event, TextMessage) else bytes(data)
                        text.clear()
                        data.clear()
                        self._length = 0
                elif isinstance(event, Ping):
                    await self._send(event.response())
                elif isinstance(event, CloseConnection):
                    if self.open:
                        self.open = False
                        await self._send(event.response())
                    return
            if not self.open:
                return
            try:
                found = await asyncio.wait_for(self._reader.read(_READ), _QUIET)
            except TimeoutError:
                if asked:
                    self.open = False
                    raise ConnectionError("the client does not answer") from None
                asked = True
                await self._send(Ping())
                continue
            asked = False
            if not found:
                self.open = False
                return
            self._receive(found)

    def _receive(self, data: bytes) -> None:
        try:
            self._socket.receive_data(data)
        except (RemoteProtocolError, LocalProtocolError) as fault:
            raise ProtocolError(f"no WebSocket's bytes: {fault}") from None

    def _events(self) -> list[object]:
        try:
            return list(self._socket.events())
        except RemoteProtocolError as fault:
            raise ProtocolError(f"no WebSocket's bytes: {fault}") from None

    async def _send(self, event: object) -> None:
        async with self._sending:
            try:
                self._writer.write(self._socket.send(event))  # type: ignore[arg-type]
            except LocalProtocolError as fault:
                raise ConnectionError("the client has left") from fault
            await asyncio.wait_for(self._writer.drain(), _PATIENCE)
