"""What a door is, and where doors are found.

A door is one module in `ringzero.doors.kinds`, called as its flag of `ringzero serve` is:

    @DOORS.register("rest")
    class Rest(Door):
        summary = "the HTTP API"

        @classmethod
        def addresses(cls) -> list[Address]: ...

        async def converse(self, reader, writer, caller): ...

It translates between its wire and the manager (`ringzero.doors.manager`), and knows nothing else.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ringzero.errors import InvalidValueError
from ringzero.records import record
from ringzero.registry import Registry

if TYPE_CHECKING:
    from ringzero.doors.caller import Caller
    from ringzero.doors.manager import Manager


@record
class Address:
    """Where a door listens: a Unix socket at `path`, or the TCP port `port` of `host`.

    With `reads`, who comes in there may only read.
    """

    path: Path | None = None
    host: str = ""
    port: int = 0
    reads: bool = False

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address in a text: a path, which holds a "/", or [HOST]:PORT.

        Raises InvalidValueError.
        """
        if "/" in text:
            return cls(Path(text).absolute())
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdecimal() or not int(port) < 1 << 16:
            raise InvalidValueError(
                f"{text!r} is no address", hint="write a path (./SOCKET), HOST:PORT or :PORT"
            )
        return cls(host=host.strip("[]") or "127.0.0.1", port=int(port))

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Door(ABC):
    """One wire. A door over TCP has TLS, and `authenticates` who comes in by itself."""

    summary: ClassVar[str]
    authenticates: ClassVar[bool] = False

    def __init__(self, manager: Manager) -> None:
        self.manager = manager

    @classmethod
    @abstractmethod
    def addresses(cls) -> list[Address]:
        """Return where the door listens where nothing else is asked for."""

    @classmethod
    def at(cls, address: Address) -> list[Address]:
        """Return where it listens when a user asks for `address`."""
        return [address]

    async def attend(self) -> None:  # noqa: B027 - most doors have nothing to do
        """Do what belongs to no connection, until the daemon ends it."""

    @abstractmethod
    async def converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller | None
    ) -> None:
        """Serve one connection to its end; the daemon closes it.

        `caller` is who may be behind a Unix socket, None over TCP.
        """


DOORS: Registry[type[Door]] = Registry("door", "ringzero.doors.kinds")
