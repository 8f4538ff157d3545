"""Streams: a guest's console, and bytes of volumes."""

from __future__ import annotations

from typing import Any

from ringzero.api.protocol import STDOUT
from ringzero.doors.conversation import Conversation, Data
from ringzero.doors.libvirt.context import Context, RefusedError, Results, handles
from ringzero.doors.libvirt.faults import ErrorCode, ErrorDomain
from ringzero.doors.libvirt.handlers.domain import find_active
from ringzero.doors.libvirt.session import Call
from ringzero.doors.libvirt.values import DomainHandle
from ringzero.errors import RingzeroError

# virDomainConsoleFlags: end whoever is on it already; only where nobody is.
_FORCE, _SAFE = 1, 2
# The aliases of the lines that a machine has.
_SERIAL = ("serial0", "serial")


class ConversationSide:
    """The server's side of a stream that is an action's conversation."""

    def __init__(self, context: Context, call: Call, conversation: Conversation) -> None:
        self._context = context
        self._serial = call.packet.serial
        self._conversation = conversation
        self._ended = False

    async def data(self, data: bytes) -> None:
        """Send the client's bytes to the machine."""
        await self._conversation.send(data)

    async def hole(self, length: int) -> None:
        """Refuse: a terminal has no holes."""
        raise RefusedError(
            ErrorCode.OPERATION_INVALID, "holes in a stream without", ErrorDomain.STREAMS
        )

    async def end(self) -> None:
        """The client wants no more."""
        self._conversation.close()

    def close(self) -> None:
        """Leave the conversation."""
        self._conversation.close()

    async def read(self) -> None:
        """Write what comes into the stream, until it ends."""
        session = self._context.session
        try:
            async for item in self._conversation.items():
                if isinstance(item, Data) and item.stream == STDOUT and item.content:
                    session.write(self._serial, item.content)
                    self._context.send()
                    await self._context.drain()
            await self._conversation.result()
        except RingzeroError as fault:
            self._context.abort(self._serial, fault)
            return
        session.write_end(self._serial)
        self._context.send()


@handles("DOMAIN_OPEN_CONSOLE")
async def open_console(
    context: Context, call: Call, domain: DomainHandle, dev_name: str | None, flags: int
) -> Results:
    found = await find_active(context, domain)
    arguments: dict[str, Any] = {"rows": 24, "columns": 80, "only": bool(flags & _SAFE)}
    if dev_name in _SERIAL:
        arguments["line"] = "serial"
    conversation = context.converse("console", arguments, found.name)
    open_stream(context, call, conversation)
    return {}


def open_stream(context: Context, call: Call, conversation: Conversation) -> None:
    """Have a conversation be the stream that a call opens."""
    side = ConversationSide(context, call, conversation)
    context.streams[call.packet.serial] = side
    context.beside_later(side.read)
