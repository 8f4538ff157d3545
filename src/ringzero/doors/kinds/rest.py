"""The HTTP API: JSON, server-sent events, WebSockets, tokens over TCP."""

from __future__ import annotations

import asyncio

from ringzero.doors.caller import Caller
from ringzero.doors.contract import DOORS, Address, Door
from ringzero.doors.http.connection import HttpConnection
from ringzero.doors.rest.service import Service
from ringzero.settings import SERVE_SOCKET


@DOORS.register("rest")
class Rest(Door):
    summary = "the HTTP API: [HOST]:PORT, with TLS and tokens, or a path"
    authenticates = True

    @classmethod
    def addresses(cls) -> list[Address]:
        """Return the user's own socket."""
        return [Address(SERVE_SOCKET.get())]

    async def converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller | None
    ) -> None:
        """Serve requests until the client leaves."""
        service = Service(self.manager, caller, reader, writer)
        await HttpConnection(reader, writer, service.respond, service.upgrade).serve()
