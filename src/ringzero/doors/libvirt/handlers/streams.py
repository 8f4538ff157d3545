"""Streams: a guest's console, and bytes of volumes."""

from __future__ import annotations

import asyncio
from typing import Any

from ringzero.api.protocol import STDOUT
from ringzero.doors.conversation import Conversation, Data
from ringzero.doors.libvirt.context import Context, RefusedError, Results, handles
from ringzero.doors.libvirt.faults import ErrorCode, ErrorDomain
from ringzero.doors.libvirt.handlers.domain import find_active
from ringzero.doors.libvirt.session import Call
from ringzero.doors.libvirt.values import DomainHandle
from ringzero.errors import RingzeroError

# virDomainConsoleFlags: only where nobody else is on it.
_SAFE = 2
# The aliases of the lines that a machine has.
_SERIAL = ("serial0", "serial")


class ConversationSide:
    """The server's side of a stream that is an action's conversation: a terminal's, by itself."""

    def __init__(self, context: Context, call: Call, conversation: Conversation) -> None:
        self.context = context
        self.serial = call.packet.serial
        self.conversation = conversation

    async def data(self, data: bytes) -> None:
        """Send the client's bytes on."""
        await self.conversation.send(data)

    def coming(self, count: int) -> asyncio.Future[None] | None:
        """A terminal has no last byte."""
        return None

    async def hole(self, length: int) -> None:
        """Refuse: a terminal has no holes."""
        text = "a hole in a stream that has none"
        raise RefusedError(ErrorCode.OPERATION_INVALID, text, ErrorDomain.STREAMS)

    async def end(self) -> None:
        """The client wants no more."""
        self.conversation.close()

    def close(self) -> None:
        """Leave the conversation."""
        self.conversation.close()

    async def read(self) -> None:
        """Write what comes into the stream, until it ends."""
        session = self.context.session
        try:
            async for item in self.conversation.items():
                if isinstance(item, Data) and item.stream == STDOUT and item.content:
                    session.write(self.serial, item.content)
                    self.context.send()
                    await self.context.drain()
            await self.conversation.result()
        except RingzeroError as fault:
            self.context.abort(self.serial, fault)
            return
        session.write_end(self.serial)
        self.context.send()


class UploadSide(ConversationSide):
    """The server's side of a stream into a volume; its end is good when all is written.

    Where the client has said how many bytes it sends, the last of them is the end: vagrant-libvirt
    says no other. `length` is 0 where it has not.
    """

    def __init__(
        self, context: Context, call: Call, conversation: Conversation, length: int
    ) -> None:
        super().__init__(context, call, conversation)
        # What of the length has not come yet, and what has not been handed over.
        self._expected = self._missing = length
        self._written: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def coming(self, count: int) -> asyncio.Future[None] | None:
        """Return what is done when all is written, where these bytes are the last."""
        if self._expected == 0:
            return None
        self._expected = max(0, self._expected - count)
        return None if self._expected else self._written

    async def data(self, data: bytes) -> None:
        """Send the client's bytes on. Raises RingzeroError."""
        await super().data(data)
        await self._handed_over(len(data))

    async def hole(self, length: int) -> None:
        """Leave a hole in the volume's file. Raises RingzeroError."""
        await self.conversation.tell("hole", length=length)
        await self._handed_over(length)

    async def end(self) -> None:
        """Wait until all is written. Raises RingzeroError."""
        if not self._written.done():
            await self.conversation.send(b"")
        await self.conversation.result()

    def close(self) -> None:
        """Leave the conversation; nobody need wait."""
        super().close()
        if not self._written.done():
            self._written.set_result(None)

    async def _handed_over(self, count: int) -> None:
        if not 0 < self._missing <= count:
            self._missing = max(0, self._missing - count)
            return
        self._missing = 0
        try:
            await self.end()
        finally:
            if not self._written.done():
                self._written.set_result(None)

    async def read(self) -> None:
        """Wait for what goes wrong before the end."""
        try:
            async for _ in self.conversation.items():
                pass
            await self.conversation.result()
        except RingzeroError as fault:
            self.context.abort(self.serial, fault)


@handles("DOMAIN_OPEN_CONSOLE")
async def open_console(
    context: Context, call: Call, domain: DomainHandle, dev_name: str | None, flags: int
) -> Results:
    found = await find_active(context, domain)
    arguments: dict[str, Any] = {"rows": 24, "columns": 80, "only": bool(flags & _SAFE)}
    if dev_name in _SERIAL:
        arguments["line"] = "serial"
    open_stream(
        context, ConversationSide(context, call, context.converse("console", arguments, found.name))
    )
    return {}


def open_stream(context: Context, side: ConversationSide) -> None:
    """Have a conversation be the stream that the call at hand opens."""
    context.streams[side.serial] = side
    context.beside_later(side.read)
