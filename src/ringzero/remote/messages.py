"""Actions as requests of the HTTP API, and what its answers say. No I/O.

A plain action is one request with one answer (`Exchange`); one that streams is a WebSocket
(`Talk`): docs/serve.md tells of both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from ringzero.api.action import Action, from_plain
from ringzero.errors import ControlError, ProtocolError, RingzeroError, from_dict
from ringzero.records import record
from ringzero.version import __version__

ROOT = "v1"
# The longest answer, in bytes: a list of a hundred thousand machines.
_MAX_ANSWER = 256 << 20
# The longest head of an answer, in bytes.
_MAX_HEAD = 64 << 10
# The longest message of a WebSocket, in bytes: an answer, as it is without one.
_MAX_MESSAGE = _MAX_ANSWER
# RFC 6455 section 7.4.1: the connection ended, and nobody had said that it would.
_NO_CLOSE = 1006


@record
class Asked:
    """A request: its method, its target with the query, and its body."""

    method: str
    target: str
    body: bytes | None = None


@record
class Answer:
    """An answer to a request."""

    status: int
    content: bytes


@record
class Data:
    """Bytes of the stream `number`; none of them are its end."""

    number: int
    content: bytes


@record
class Told:
    """A message: an event, or the last one, with the result or the error."""

    content: dict[str, Any]


Item: TypeAlias = Data | Told


def ask(action: Action, machine: str | None, arguments: Mapping[str, Any]) -> Asked:
    """Return the request for a plain action."""
    target = _target(action, machine)
    if action.reads:
        return Asked("GET", target + _query(arguments))
    return Asked("POST", target, json.dumps(arguments).encode())


def open_stream(
    action: Action, machine: str | None, arguments: Mapping[str, Any]
) -> tuple[str, str | None]:
    """Return the target of an action that streams, and its first message, where there is one.

    Arguments may be longer than a request's head may be; there is a message for them where some
    must be given.
    """
    target = _target(action, machine)
    if any(argument.required for argument in action.arguments):
        return target, json.dumps(arguments)
    return target + _query(arguments), None


def _target(action: Action, machine: str | None) -> str:
    before = "" if machine is None else f"machines/{quote(machine, '', errors='surrogateescape')}/"
    return f"/{ROOT}/{before}{action.name}"


def _query(arguments: Mapping[str, Any]) -> str:
    pairs = list[tuple[str, str]]()
    for name, value in arguments.items():
        if value is None:
            continue
        for each in value if isinstance(value, list) else (value,):
            pairs.append((name, str(each).lower() if isinstance(each, bool) else str(each)))
    return f"?{urlencode(pairs, errors='surrogateescape')}" if pairs else ""


def read(answer: Answer) -> Any:
    """Return what an answer says, as plain data. Raises the error that it tells."""
    try:
        told = json.loads(answer.content)
    except (ValueError, RecursionError):
        told = None
        if answer.status < 300:
            raise ProtocolError("an answer that is no JSON") from None
    if answer.status < 300:
        return told
    raise _error(told, answer.status)


def _error(told: Any, status: int) -> RingzeroError:
    error = told.get("error") if isinstance(told, dict) else None
    if isinstance(error, dict):
        return from_dict(error)
    return ProtocolError(
        f"an answer with the status {status} that is not of `ringzero serve`",
        hint="is another server, or a proxy, at this address?",
    )


def result(action: Action, told: Mapping[str, Any]) -> Any:
    """Return the result in the last message of a stream. Raises the error that it tells."""
    if isinstance(error := told.get("error"), dict):
        raise from_dict(error)
    if "result" not in told:
        raise ProtocolError("an answer with neither a result nor an error")
    return from_plain(action.result, told["result"])


def _headers(authority: str, token: str | None) -> list[tuple[str, str]]:
    found = [("host", authority), ("user-agent", f"ringzero/{__version__}")]
    return found if token is None else [*found, ("authorization", f"Bearer {token}")]


class Exchange:
    """One request after the other, and their answers, on one connection (RFC 9112)."""

    def __init__(self, authority: str, token: str | None) -> None:
        self._fixed = _headers(authority, token)
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        self._status = 0
        self._content = bytearray()

    @property
    def reusable(self) -> bool:
        """Whether another request may follow the answer."""
        return self._http.our_state is h11.IDLE and self._http.their_state is h11.IDLE

    @property
    def begun(self) -> bool:
        """Whether something of the answer has come."""
        return bool(self._status)

    def request(self, asked: Asked, more: Mapping[str, str]) -> bytes:
        """Return a request's bytes, with `more` fields in its head."""
        self._status = 0
        self._content.clear()
        headers = [*self._fixed, ("accept", "application/json"), *more.items()]
        if asked.body is not None:
            headers += [
                ("content-type", "application/json"),
                ("content-length", str(len(asked.body))),
            ]
        event = h11.Request(method=asked.method, target=asked.target, headers=headers)
        data = self._http.send(event) or b""
        if asked.body:
            data += self._http.send(h11.Data(data=asked.body)) or b""
        return data + (self._http.send(h11.EndOfMessage()) or b"")

    def feed(self, data: bytes) -> Answer | None:
        """Take bytes, none at their end; return the answer once it is whole.

        Raises ProtocolError, and ControlError where the end came before.
        """
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    return None
                if isinstance(event, h11.Response):
                    self._status = event.status_code
                elif isinstance(event, h11.Data):
                    self._content += event.data
                    if len(self._content) > _MAX_ANSWER:
                        raise ProtocolError(f"an answer of more than {_MAX_ANSWER} bytes")
                elif isinstance(event, h11.EndOfMessage):
                    if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
                        self._http.start_next_cycle()
                    return Answer(self._status, bytes(self._content))
                elif isinstance(event, h11.ConnectionClosed):
                    raise ControlError("the connection ended before the answer")
        except h11.RemoteProtocolError as fault:
            if not data:
                when = "within" if self.begun else "before"
                raise ControlError(f"the connection ended {when} the answer") from None
            raise ProtocolError(f"bytes that are no answer of HTTP/1.1: {fault}") from None


class Talk:
    """A WebSocket of an action that streams (RFC 6455). Use it no more once it has raised."""

    def __init__(self, authority: str, token: str | None) -> None:
        self._authority = authority
        self._headers = [
            (name.encode(), value.encode())
            for name, value in _headers(authority, token)
            if name != "host"
        ]
        self._socket = WSConnection(ConnectionType.CLIENT)
        self._rejected: int | None = None
        self._content = bytearray()
        self._parts: list[str | bytes] = []
        self._length = 0
        # Whether input may be sent; what is to be sent because of what was taken; the end.
        self.open = False
        self.due = bytearray()
        self.ended = False

    def begin(self, target: str) -> bytes:
        """Return the request for it."""
        asked = Request(host=self._authority, target=target, extra_headers=self._headers)
        return self._socket.send(asked)

    def feed(self, data: bytes) -> Iterator[Item]:
        """Take bytes, none at their end, and yield what they complete.

        Raises the error by which the server rejects it, ProtocolError, and ControlError where the
        connection ended before it was said to.
        """
        try:
            self._socket.receive_data(data or None)
            for event in self._socket.events():
                yield from self._take(event)
        except (RemoteProtocolError, LocalProtocolError) as fault:
            if not data:
                raise ControlError("the connection ended before the answer") from None
            raise ProtocolError(f"bytes that are no WebSocket's: {fault}") from None
        if not data and not self.ended:
            raise ControlError("the connection ended before the answer")

    def _take(self, event: object) -> Iterator[Item]:
        if isinstance(event, AcceptConnection):
            self.open = True
        elif isinstance(event, TextMessage | BytesMessage):
            self._length += len(event.data)
            if self._length > _MAX_MESSAGE:
                raise ProtocolError(f"a message of more than {_MAX_MESSAGE} bytes")
            self._parts.append(event.data if isinstance(event, TextMessage) else bytes(event.data))
            if event.message_finished:
                yield self._message()
        elif isinstance(event, Ping):
            self.due += self._socket.send(event.response())
        elif isinstance(event, CloseConnection):
            if event.code == _NO_CLOSE:
                # The end of the bytes, as wsproto tells it.
                self.open = False
                return
            self.ended = True
            if self.open:
                self.open = False
                self.due += self._socket.send(event.response())
            if event.code not in (1000, 1011):
                raise ProtocolError(f"the server left: {event.reason or event.code}")
        elif isinstance(event, RejectConnection):
            self._rejected = event.status_code
            if not event.has_body:
                self._reject()
        elif isinstance(event, RejectData):
            self._content += event.data
            if event.body_finished or len(self._content) > _MAX_HEAD:
                self._reject()

    def _message(self) -> Item:
        parts, self._parts, self._length = self._parts, [], 0
        if isinstance(parts[0], bytes):
            data = b"".join(part for part in parts if isinstance(part, bytes))
            if not data:
                raise ProtocolError("a message of bytes without a stream's number")
            return Data(data[0], data[1:])
        text = "".join(part for part in parts if isinstance(part, str))
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise ProtocolError("a message of text that is no JSON object")
        return Told(told)

    def _reject(self) -> None:
        try:
            told = json.loads(bytes(self._content))
        except (ValueError, RecursionError):
            told = None
        raise _error(told, self._rejected or 0)

    def data(self, number: int, content: bytes) -> bytes:
        """Return bytes of a stream as they are sent; b"" is the stream's end."""
        return self._socket.send(BytesMessage(data=bytes((number,)) + content))

    def text(self, content: str) -> bytes:
        """Return a message of text as it is sent."""
        return self._socket.send(TextMessage(data=content))

    def event(self, kind: str, content: Mapping[str, Any]) -> bytes:
        """Return an event as it is sent."""
        return self.text(json.dumps({"event": kind, **content}))
