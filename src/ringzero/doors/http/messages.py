"""Requests and responses, as a door that speaks HTTP sees them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from ringzero.errors import InvalidValueError, RingzeroError
from ringzero.records import field, record

# The longest body that is JSON, in bytes: as a message on a machine's socket.
MAX_JSON = 1 << 20
JSON, TEXT, BYTES = "application/json", "text/plain; charset=utf-8", "application/octet-stream"


class TooLongError(InvalidValueError):
    """A body that is longer than what is asked for may be."""

    kind = "too-long"


class Body(Protocol):
    """A request's body, which is read once."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield its bytes as they come. Raises ConnectionError where they do not come."""
        ...


@record
class Request:
    """A request. `segments` are the path's, decoded; names of `headers` are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: Body

    @property
    def segments(self) -> tuple[str, ...]:
        """The path between its slashes; a text that is no UTF-8 is kept as marks."""
        path = urlsplit(self.target).path
        return tuple(unquote(part) for part in path.split("/") if part)

    @property
    def query(self) -> list[tuple[str, str]]:
        """The arguments behind the question mark, in their order."""
        return parse_qsl(urlsplit(self.target).query, keep_blank_values=True)

    def wants(self, media_type: str) -> bool:
        """Whether the client names a media type in `Accept`."""
        return media_type in self.headers.get("accept", "")

    @property
    def wants_socket(self) -> bool:
        """Whether the connection is to become a WebSocket."""
        return self.headers.get("upgrade", "").lower() == "websocket"

    async def read(self, most: int = MAX_JSON) -> bytes:
        """Return the body. Raises TooLongError."""
        found = bytearray()
        async for part in self.body:
            found += part
            if len(found) > most:
                raise TooLongError(f"a body of more than {most} bytes")
        return bytes(found)

    async def json(self) -> dict[str, Any]:
        """Return the object in the body, an empty one where there is no body.

        Raises InvalidValueError.
        """
        data = await self.read()
        if not data.strip():
            return {}
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as fault:
            raise InvalidValueError(f"the body is no JSON: {fault}") from None
        if not isinstance(found, dict):
            raise InvalidValueError("the body is no JSON object", hint='write {"NAME": VALUE}')
        return found


@record
class Response:
    """A response. `parts` follow `content` as they come, with no length said before.

    They are closed when the response ends: one that has begun frees then what it holds.
    """

    status: int
    content: bytes = b""
    type: str = JSON
    headers: Sequence[tuple[str, str]] = field(default_factory=tuple)
    parts: AsyncGenerator[bytes, None] | None = None

    @classmethod
    def json(cls, value: Any, status: int = 200, **headers: str) -> Response:
        """Return a response that is JSON."""
        content = json.dumps(value, default=str).encode() + b"\n"
        return cls(status, content, headers=tuple(headers.items()))

    @classmethod
    def error(cls, fault: RingzeroError, status: int) -> Response:
        """Return the response that an error is: {"error": ...}."""
        return cls.json({"error": fault.to_dict()}, status)


# What a door does with a request; an upgraded connection is its own affair.
Handler = Callable[[Request], Awaitable[Response]]
