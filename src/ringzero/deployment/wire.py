"""What a deployment's process and those who ask it say to each other: messages in JSON.

    client  {"ask": NAME, ...}
    server  {"event": TEXT} ... then {"result": ...} or {"error": {...}}

Frames are those of a machine's socket (`ringzero.api.protocol`). One question each connection; a
client that says {"cancel": true} meanwhile has a rollout taken back.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from typing import Any

from ringzero.api.protocol import Decoder, Message, encode_message
from ringzero.errors import ControlError, ProtocolError

_READ = 64 * 1024


class Link:
    """One end of a connection; closed with it. `send` is called from any thread."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._decoder = Decoder()
        self._waiting: list[dict[str, Any]] = []

    def settimeout(self, seconds: float | None) -> None:
        """Bound what one message may take."""
        self._link.settimeout(seconds)

    def send(self, content: Mapping[str, Any]) -> None:
        """Send a message; ignored once the other side has gone. Raises ProtocolError."""
        data = encode_message(content)
        with contextlib.suppress(OSError):
            self._link.sendall(data)

    def receive(self) -> dict[str, Any]:
        """Return the next message. Raises ControlError where there is none, ProtocolError."""
        while not self._waiting:
            try:
                data = self._link.recv(_READ)
            except TimeoutError:
                raise ControlError(
                    "the deployment's process does not answer", hint="see its log: docs/deploy.md"
                ) from None
            except OSError:
                data = b""
            if not data:
                raise ControlError("the deployment's process ended the conversation")
            for frame in self._decoder.feed(data):
                if not isinstance(frame, Message):
                    raise ProtocolError("bytes where a message was due")
                self._waiting.append(frame.content)
        return self._waiting.pop(0)

    def close(self) -> None:
        """Go away."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()
