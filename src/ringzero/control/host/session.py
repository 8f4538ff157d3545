"""One conversation with a machine's process over its socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

from ringzero.api.action import PATIENCE, Action, Stream, from_plain
from ringzero.api.protocol import (
    STDIN,
    VERSION,
    Data,
    Decoder,
    Frame,
    Message,
    check_greeting,
    encode_data,
    encode_message,
)
from ringzero.control.host.directory import MachineDirectory
from ringzero.errors import ControlError, ProtocolError, from_dict

_READ = 256 * 1024


class Session:
    """One connection. `call` asks for a plain action, `stream` for one that streams."""

    def __init__(self, where: MachineDirectory, timeout: float = PATIENCE) -> None:
        self._where = where
        self._link = where.connect()
        self._link.settimeout(timeout)
        self._decoder = Decoder()
        self._waiting: list[Frame] = []
        self._sending = threading.Lock()
        try:
            first = self._message()
            if isinstance(error := first.get("error"), dict):
                raise from_dict(error)
            check_greeting(first)
        except BaseException:
            self._link.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the conversation; from any thread."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()

    def call(self, action: Action, arguments: Mapping[str, Any]) -> Any:
        """Return the answer to a plain action. Raises what the machine's process raises."""
        self._request(action, arguments)
        return self.answer(action)

    def request(
        self, action: Action, arguments: Mapping[str, Any], descriptors: Sequence[int] = ()
    ) -> None:
        """Ask for a plain action, and hand over descriptors; `answer` is to follow."""
        self._request(action, arguments, descriptors)

    def answer(self, action: Action) -> Any:
        """Return the answer to what was asked for. Raises what the machine's process raises."""
        return _result(action, self._message())

    def stream(self, action: Action, arguments: Mapping[str, Any], stream: Stream) -> Any:
        """Start an action that streams, pass its bytes on to `stream`, and return its answer."""
        self._request(action, arguments)
        self._link.settimeout(None)
        stream.begin(self)
        while True:
            frame = self._frame()
            if isinstance(frame, Data):
                stream.data(frame.stream, frame.content)
            elif "event" in frame.content:
                stream.event(str(frame.content["event"]), frame.content)
            else:
                return _result(action, frame.content)

    def send(self, data: bytes) -> None:
        """Send input bytes; b"" is their end. Ignored once the other side has gone."""
        self._send(encode_data(STDIN, data))

    def event(self, kind: str, **content: Any) -> None:
        """Send an event: "signal" with its `name`, "resize" with `rows` and `columns`."""
        self._send(encode_message({"event": kind, **content}))

    def _request(
        self, action: Action, arguments: Mapping[str, Any], descriptors: Sequence[int] = ()
    ) -> None:
        content = {"version": VERSION, "action": action.name, "arguments": dict(arguments)}
        data = encode_message(content)
        if descriptors:
            # They come with the first bytes, which are few.
            with self._sending, contextlib.suppress(OSError):
                sent = socket.send_fds(self._link, [data], descriptors)
                data = data[sent:]
        self._send(data)

    def _send(self, data: bytes) -> None:
        # What went wrong shows where the answer is read.
        with self._sending, contextlib.suppress(OSError):
            self._link.sendall(data)

    def _message(self) -> dict[str, Any]:
        frame = self._frame()
        if not isinstance(frame, Message):
            raise ProtocolError("bytes where an answer was due")
        return frame.content

    def _frame(self) -> Frame:
        while not self._waiting:
            try:
                data = self._link.recv(_READ)
            except TimeoutError:
                raise ControlError(
                    f"machine {self._where.name!r} does not answer",
                    hint=f"`ringzero kill {self._where.name}` ends it",
                ) from None
            except OSError:
                data = b""
            if not data:
                raise self._gone()
            self._waiting += self._decoder.feed(data)
        return self._waiting.pop(0)

    def _gone(self) -> ControlError:
        """Return the error for a connection that ended without an answer."""
        name = self._where.name
        if not self._where.wait_end(1.0):
            return ControlError(
                f"machine {name!r} ended the conversation", hint="too many clients at once?"
            )
        ended = self._where.exit()
        return ControlError(
            f"machine {name!r} ended meanwhile: "
            + (f"{ended.reason}: {ended.detail}" if ended is not None else "it was removed")
        )


class WayOut:
    """How one who only waits, or reads, leaves; nothing else is sent."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.left = False

    def send(self, data: bytes) -> None:
        """Send nothing."""

    def event(self, kind: str, **content: Any) -> None:
        """Send nothing."""

    def close(self) -> None:
        """Leave."""
        self.left = True
        if self.session is not None:
            self.session.close()


def _result(action: Action, content: dict[str, Any]) -> Any:
    error = content.get("error")
    if isinstance(error, dict):
        raise from_dict(error)
    if "result" not in content:
        raise ProtocolError("an answer with neither a result nor an error")
    return from_plain(action.result, content["result"])
