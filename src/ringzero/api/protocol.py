"""The protocol on a machine's socket: frames, and the messages in them. It does no I/O.

A frame is a header of five bytes, the payload's length (32 bits, big-endian)
and the frame's kind (8 bits), and the payload:

    kind 1  MESSAGE  one JSON object in UTF-8, at most 1 MiB
    kind 2  DATA     the number of a stream (8 bits), then at most 64 KiB of its
                     bytes; none of them: the stream's end

A conversation:

    server  {"ringzero": "control", "versions": [1], "machine": NAME}
    client  {"version": 1, "action": NAME, "arguments": {...}}
    server  {"result": ...} or {"error": {"kind", "message", "hint", "context"}}

After a plain action's answer the client may ask for the next one. An action
that streams is the last of its connection: until its answer both sides send
DATA frames, and the client {"event": "resize", "rows": N, "columns": N} or
{"event": "signal", "name": "INT"}, the server {"event": "waiting", "seconds": N,
"waited": N} while the guest takes no commands, and {"event": "live"} between what a
console had said before and what it says now.

Streams: 0 input, 1 output (or the console's), 2 error output.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ringzero.errors import ProtocolError

VERSION = 1
HEADER = struct.Struct("!IB")
MESSAGE, DATA = 1, 2
# The longest command that the guest's agent takes has 256 KiB; JSON may escape each byte.
MAX_MESSAGE = 1 << 20
MAX_DATA = 64 * 1024
STDIN, STDOUT, STDERR = 0, 1, 2
_LIMITS = {MESSAGE: MAX_MESSAGE, DATA: MAX_DATA + 1}


@dataclass(frozen=True)
class Message:
    """A MESSAGE frame."""

    content: dict[str, Any]


@dataclass(frozen=True)
class Data:
    """A DATA frame; no `content` is the stream's end."""

    stream: int
    content: bytes


Frame: TypeAlias = Message | Data


def encode_message(content: Mapping[str, Any]) -> bytes:
    """Return a message as bytes. Raises ProtocolError for one that is too long."""
    payload = json.dumps(content, default=str).encode()
    if len(payload) > MAX_MESSAGE:
        raise ProtocolError(
            f"a message of {len(payload)} bytes; at most {MAX_MESSAGE}",
            hint="a command's long input belongs on its standard input",
        )
    return HEADER.pack(len(payload), MESSAGE) + payload


def encode_data(stream: int, content: bytes | bytearray) -> bytes:
    """Return bytes of a stream as as many frames as they need; b"" is the stream's end."""
    chunks = [content[at : at + MAX_DATA] for at in range(0, len(content), MAX_DATA)] or [b""]
    return b"".join(
        HEADER.pack(len(chunk) + 1, DATA) + bytes((stream,)) + chunk for chunk in chunks
    )


class Decoder:
    """Takes bytes as they come and gives frames; it keeps no more than one frame's bytes."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def pending(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._rest)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that `data` completes. Raises ProtocolError; use it no more then."""
        data, at = self._rest + data, 0
        try:
            while len(data) - at >= HEADER.size:
                length, kind = HEADER.unpack_from(data, at)
                limit = _LIMITS.get(kind)
                if limit is None:
                    raise ProtocolError(f"a frame of unknown kind {kind}")
                if length > limit or (kind == DATA and length == 0):
                    raise ProtocolError(f"a frame of kind {kind} with {length} bytes", limit=limit)
                begin, end = at + HEADER.size, at + HEADER.size + length
                if len(data) < end:
                    return
                at = end
                if kind == MESSAGE:
                    yield _message(data[begin:end])
                else:
                    yield Data(data[begin], data[begin + 1 : end])
        finally:
            self._rest = data[at:]


def _message(payload: bytes) -> Message:
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError) as fault:
        raise ProtocolError("a message that is not JSON") from fault
    if not isinstance(content, dict):
        raise ProtocolError("a message that is not a JSON object")
    return Message(content)


def greeting(machine: str) -> dict[str, Any]:
    """Return what the server says first."""
    return {"ringzero": "control", "versions": [VERSION], "machine": machine}


def check_greeting(content: Mapping[str, Any]) -> None:
    """Raise ProtocolError unless `content` is a greeting of a server that we understand."""
    versions = content.get("versions")
    if content.get("ringzero") != "control" or not isinstance(versions, list):
        raise ProtocolError("whoever answers on the machine's socket is no ringzero machine")
    if VERSION not in versions:
        raise ProtocolError(
            f"the machine's process speaks versions {versions} of the protocol, not {VERSION}",
            hint="it was started by another version of ringzero; use that one for it",
        )
