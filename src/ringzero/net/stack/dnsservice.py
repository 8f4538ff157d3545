"""The resolver's address as guests see it: DNS over UDP and TCP (RFC 1035, RFC 7766)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from ringzero.core.frames import Buffer
from ringzero.net.stack import dnsmessage
from ringzero.net.stack.dns import DnsServer
from ringzero.net.stack.dnsmessage import DnsFormatError, parse_question, truncated
from ringzero.net.stack.tcp.connection import Connection

DNS_PORT = 53
# The longest query over TCP that is looked at.
_MAX_QUERY = 4096
# The longest answer that a datagram carries.
_MAX_ANSWER = 0xFFFF - 48

Answer = Callable[[bytes | None], None]


class Upstream(Protocol):
    """Whoever knows what `DnsServer` does not."""

    def resolve(self, query: bytes, stream: bool, answer: Answer) -> None:
        """Ask another resolver, and call `answer`, with None where nobody answers.

        `stream` says that the guest asks over TCP, where answers may be long.
        """
        ...


class DnsService:
    """Answers queries by `server`, or else by `upstream`. `clock` tells the time, in seconds."""

    def __init__(self, server: DnsServer, upstream: Upstream, clock: Callable[[], float]) -> None:
        self._server = server
        self._upstream = upstream
        self._clock = clock

    def take(self, query: bytes, send: Callable[[bytes], None]) -> None:
        """Take a query that came as a datagram; `send` sends the answer."""

        def answer(data: bytes) -> None:
            # What is too long for a datagram is asked for again, over TCP.
            send(data if len(data) <= _MAX_ANSWER else truncated(query, parse_question(query)))

        self.resolve(query, False, answer)

    def serve(self, connection: Connection) -> None:
        """Answer what a guest asks by a connection that it wants."""
        connection.endpoint = _Stream(self, connection)
        connection.accept()

    def resolve(self, query: bytes, stream: bool, answer: Callable[[bytes], None]) -> None:
        """Call `answer` with the answer to a query; empty where it deserves none."""
        own = self._server.answer(query)
        if own is not None:
            answer(own)
        else:
            self._upstream.resolve(query, stream, partial(self._answered, query, answer))

    def _answered(self, query: bytes, answer: Callable[[bytes], None], data: bytes | None) -> None:
        if data is not None:
            self._server.learn(query, data, self._clock())
        answer(data if data is not None else _failure(query))


class _Stream:
    """DNS over TCP: each message behind its length, 2 bytes."""

    def __init__(self, service: DnsService, connection: Connection) -> None:
        self._service = service
        self._connection = connection
        self._data = b""
        self._waiting = 0
        self._ended = False

    def opened(self) -> None:
        """Questions follow."""

    def receive(self, buffers: list[Buffer], size: int) -> int:
        """Answer the questions that are complete."""
        self._data += b"".join(buffers)
        while len(self._data) >= 2:
            length = int.from_bytes(self._data[:2], "big")
            if length > _MAX_QUERY:
                self._connection.abort()
                break
            if len(self._data) < 2 + length:
                break
            query, self._data = self._data[2 : 2 + length], self._data[2 + length :]
            self._waiting += 1
            self._service.resolve(query, True, self._answer)
        return size

    def _answer(self, data: bytes) -> None:
        self._waiting -= 1
        if data and self._connection.room >= len(data) + 2:
            self._connection.send(len(data).to_bytes(2, "big") + data)
        self._end()

    def _end(self) -> None:
        if self._ended and not self._waiting:
            self._connection.finish()

    def ended(self) -> None:
        """Finish when all is answered."""
        self._ended = True
        self._end()

    def room(self) -> None:
        """Answers are short."""

    def lost(self) -> None:
        """Answers on their way are dropped by the connection."""


def _failure(query: bytes) -> bytes:
    try:
        return dnsmessage.reply(query, parse_question(query), dnsmessage.SERVER_FAILURE)
    except DnsFormatError:
        return b""
