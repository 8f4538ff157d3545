"""Speaks with running machines: typed calls over their sockets. Loads no engine.

web = client.machine("web")
web.pause(); web.resume()
print(web.run(["uname", "-a"]).stdout)
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ringzero.control.host import directory
from ringzero.control.host.directory import MachineDirectory
from ringzero.control.host.records import ExitRecord, MachineRecord
from ringzero.control.machine import actions  # noqa: F401 - fills the table
from ringzero.control.machine.protocol import (
    STDERR,
    STDIN,
    STDOUT,
    VERSION,
    Data,
    Decoder,
    Frame,
    Message,
    check_greeting,
    encode_data,
    encode_message,
)
from ringzero.control.machine.table import get
from ringzero.errors import ConflictError, ControlError, ProtocolError, from_dict
from ringzero.records import replace

# How long a machine's process may take to answer a plain action, in seconds. It answers in
# milliseconds unless the host swaps or its disk hangs.
ANSWER = 30.0
# How long many copies on a busy host may take, in seconds.
_FORK = 120.0
# How long memory and disks may take to be written, in seconds: an hour is 200 GB on a slow disk.
_SAVE = 3600.0
_READ = 256 * 1024
# How long a process may take to be gone after it said that the machine has ended, in seconds.
_GONE = 10.0


@dataclass(frozen=True)
class Completed:
    """What a command in the guest printed, and its exit status."""

    stdout: bytes
    stderr: bytes
    exit_code: int


class Session:
    """One connection. `call` asks for a plain action, `stream` for one that streams."""

    def __init__(self, where: MachineDirectory, timeout: float = ANSWER) -> None:
        self._where = where
        self._link = where.connect()
        self._link.settimeout(timeout)
        self._decoder = Decoder()
        self._waiting: list[Frame] = []
        self._sending = threading.Lock()
        check_greeting(self._message())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the conversation; from any thread."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()

    def call(self, action: str, **arguments: Any) -> Any:
        """Return the answer to a plain action. Raises what the machine's process raises."""
        self._request(action, arguments)
        return _result(self._message())

    def stream(
        self,
        action: str,
        arguments: dict[str, Any],
        on_data: Callable[[int, bytes], None],
        on_begun: Callable[[], object] = lambda: None,
    ) -> Any:
        """Start an action that streams, pass its bytes on, and return its answer.

        Input and events may be sent, from other threads, once `on_begun` was called.
        """
        self._request(action, arguments)
        self._link.settimeout(None)
        on_begun()
        while True:
            frame = self._frame()
            if isinstance(frame, Data):
                on_data(frame.stream, frame.content)
            elif "event" not in frame.content:
                return _result(frame.content)

    def send(self, data: bytes) -> None:
        """Send input bytes; b"" is their end. Ignored once the other side has gone."""
        self._send(encode_data(STDIN, data))

    def event(self, kind: str, **content: Any) -> None:
        """Send an event: "signal" with its `name`, "resize" with `rows` and `columns`."""
        self._send(encode_message({"event": kind, **content}))

    def _request(self, action: str, arguments: dict[str, Any]) -> None:
        get(action).check(arguments)
        content = {"version": VERSION, "action": action, "arguments": arguments}
        self._send(encode_message(content))

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


class RemoteMachine:
    """A machine that another process runs."""

    def __init__(self, where: MachineDirectory) -> None:
        self.directory = where
        self.name = where.name

    def session(self, timeout: float = ANSWER) -> Session:
        """Return a new connection. Raises ConflictError where the machine does not run."""
        return Session(self.directory, timeout)

    def call(self, action: str, **arguments: Any) -> Any:
        """Return the answer to one plain action."""
        with self.session() as session:
            return session.call(action, **arguments)

    def inspect(self) -> dict[str, Any]:
        """Return everything about the machine, running or not."""
        if not self.directory.alive:
            self.directory.machine()
            return self.directory.summary()
        found = self.call("inspect")
        if not isinstance(found, dict):
            raise ProtocolError("an answer that is no object")
        return found

    def pause(self) -> None:
        """Stop the guest until `resume`."""
        self.call("pause")

    def resume(self) -> None:
        """Let the guest go on."""
        self.call("resume")

    def fork(self, count: int = 1, name: str = "") -> list[RemoteMachine]:
        """Return `count` running copies; `name` is a pattern with "%" for their number."""
        with self.session(_FORK) as session:
            made = session.call("fork", count=count, name=name)
        return [RemoteMachine(directory.find(n, self.directory.path.parent)) for n in made]

    def snapshot(
        self, name: str, store: Path, *, memory: bool = True, compress: bool = False
    ) -> str:
        """Have the machine saved as it is now; return the snapshot's identifier."""
        how = {"store": str(store), "memory": memory, "compress": compress}
        with self.session(_SAVE) as session:
            return str(session.call("snapshot", name=name, **how))

    def revert(self, snapshot: Path) -> None:
        """Take the machine, running or not, back to the snapshot in a directory; it goes on."""
        if self.directory.alive:
            with self.session(_SAVE) as session:
                session.call("revert", snapshot=str(snapshot))
            return
        record = self.directory.machine()
        if record.snapshot or record.parent:
            # A copy's disks went with it; it begins anew with the snapshot's.
            again = replace(record, snapshot=str(snapshot), parent="", revert="")
        else:
            again = replace(record, revert=str(snapshot))
        self._start_again(again)

    def start(self) -> None:
        """Start a machine that has ended, as it was described. Raises ConflictError."""
        record = self.directory.machine()
        if not self.directory.alive and (record.snapshot or record.parent) and not record.revert:
            raise ConflictError(
                f"machine {self.name!r} was a copy; what it was went with it",
                hint=f"`ringzero snapshot revert {self.name} SNAPSHOT` starts it from a snapshot",
            )
        self._start_again(record)

    def _start_again(self, record: MachineRecord) -> None:
        from ringzero.control.host.launch import launch

        launch(self.directory.reclaim(replace(record, foreground=False)))

    def stop(self, timeout: float = 10.0) -> ExitRecord:
        """Have the guest switch itself off, or end it after `timeout` seconds; wait for that."""
        with self.session(timeout + ANSWER) as session:
            record = _record(session.call("stop", timeout=timeout))
        self.directory.wait_end(_GONE)
        return record

    def kill(self) -> ExitRecord:
        """End the machine at once, with its process where that does not answer."""
        try:
            with self.session(2.0) as session:
                record = _record(session.call("kill"))
            if self.directory.wait_end(_GONE):
                return record
        except ControlError:
            pass
        self.directory.end_process()
        record = ExitRecord("killed", "by `kill`; its process did not answer", 137, 0.0)
        self.directory.write_death(record)
        return record

    def wait(self) -> ExitRecord:
        """Wait for the end of the machine and return how it ended."""
        if self.directory.alive:
            with contextlib.suppress(ControlError), self.session() as session:
                session.stream("wait", {}, lambda *_: None)
            while not self.directory.wait_end(_GONE):
                pass
        record = self.directory.exit()
        if record is None:
            raise directory.not_found(self.name, self.directory.path.parent)
        return record

    def remove(self, *, force: bool = False) -> None:
        """Remove the machine; with `force` end it first. Raises ConflictError."""
        if force:
            self.directory.end_process()
        self.directory.remove()

    def run(self, words: Sequence[str], input: bytes | None = None) -> Completed:
        """Run a command in the guest and return what it printed."""
        out = {STDOUT: bytearray(), STDERR: bytearray()}
        arguments = {"words": list(words), "stdin": input is not None}
        with self.session() as session:
            feeder = threading.Thread(
                target=_feed, args=(session, input or b""), name="input", daemon=True
            )
            answer = session.stream(
                "exec",
                arguments,
                lambda number, data: out[number].extend(data),
                lambda: feeder.start() if input is not None else None,
            )
        return Completed(bytes(out[STDOUT]), bytes(out[STDERR]), int(answer["status"]))


def machine(name: str, where: Path | None = None) -> RemoteMachine:
    """Return the machine called `name`. Raises NotFoundError."""
    return RemoteMachine(directory.find(name, where))


def machines(where: Path | None = None) -> Iterator[RemoteMachine]:
    """Yield all machines, those that ended too, by name."""
    return map(RemoteMachine, directory.machines(where))


def _feed(session: Session, data: bytes) -> None:
    session.send(data)
    if data:
        session.send(b"")


def _result(content: dict[str, Any]) -> Any:
    error = content.get("error")
    if isinstance(error, dict):
        raise from_dict(error)
    if "result" not in content:
        raise ProtocolError("an answer with neither a result nor an error")
    return content["result"]


def _record(data: Any) -> ExitRecord:
    record = ExitRecord.from_dict(data) if isinstance(data, dict) else None
    if record is None:
        raise ProtocolError("an answer that is no exit record")
    return record
