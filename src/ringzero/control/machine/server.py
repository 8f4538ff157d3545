"""A machine's socket: who may speak, how much at once, and that no client hurts the machine.

One thread accepts, one for each connection reads and acts, and a connection
that streams has one more that writes. Whatever a client does or leaves undone
costs it its own connection.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from ringzero.api.action import Action, to_plain
from ringzero.api.protocol import (
    MAX_DATA,
    STDOUT,
    VERSION,
    Data,
    Decoder,
    Frame,
    Message,
    encode_data,
    encode_message,
    greeting,
)
from ringzero.api.table import get
from ringzero.api.values import Status
from ringzero.control.host.directory import SOCKET, MachineDirectory
from ringzero.errors import ControlError, NotFoundError, ProtocolError, RingzeroError
from ringzero.host.files import host_error
from ringzero.host.service import OnFault, ServiceThread
from ringzero.records import record

# More at once than scripts, watchers and a fleet's monitor need; each costs two threads.
MAX_CONNECTIONS = 128
# How long a client may take to say what it wants, or to go on in the middle of a frame, in seconds.
PATIENCE = 30.0
# Bytes for a client that does not read: above HIGH its source is held or loses output, at
# LOW it goes on.
HIGH, LOW = 1 << 20, 256 * 1024
# How long clients may take to read the last answers when the machine ends, in seconds.
_FAREWELL = 2.0
_READ = 256 * 1024
# struct ucred (unix(7)): pid, uid, gid.
_UCRED = struct.Struct("@iII")
# struct timeval (socket(7)): seconds, microseconds.
_TIMEVAL = struct.Struct("@ll")

# Who does what is asked for, by the action's name: it takes the owner, the call where the
# action streams, and all of the action's arguments by name.
# One that is TakesDescriptors is given those that came with the request, too: it closes them.
Handlers: TypeAlias = Mapping[str, "Callable[..., Any] | TakesDescriptors"]
# How many may come with a request.
_MOST_DESCRIPTORS = 4


@record
class TakesDescriptors:
    """A handler of a plain action, which takes descriptors as its second argument."""

    do: Callable[..., Any]


class Owner(Protocol):
    """Whose socket it is; handed on to the handlers."""

    # Hears of an exception that ends the thread which accepts clients.
    on_fault: OnFault | None

    @property
    def status(self) -> Status:
        """What the machine is doing."""
        ...


class Call:
    """A streaming action of one client: frames in, bytes and one answer out.

    `write` and `finish` never block and may be called from any thread.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._changed = threading.Condition()
        # Frames to send, and behind them bytes of one stream that are none yet: what comes in
        # small pieces while others are sent becomes one.
        self._queue: deque[bytes] = deque()
        self._loose = bytearray()
        self._stream = STDOUT
        # Bytes in both.
        self._size = 0
        self._closing = False
        self.finished = False
        # Called with True when the client reads too slowly, with False when it goes on.
        self.on_pressure: Callable[[bool], None] | None = None
        self._pressed = False
        # Readable when `wait_until` is to look again.
        self._looks = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._waits = False
        self._writer = threading.Thread(target=self._work, name="client", daemon=True)
        self._writer.start()

    def write(self, stream: int, data: bytes) -> bool:
        """Send bytes of a stream; False where the client has too many unread already."""
        with self._changed:
            if self._closing or self._size > 4 * HIGH:
                return False
            if stream != self._stream:
                self._bind()
                self._stream = stream
            self._loose += data
            self._size += len(data)
            if len(self._loose) >= MAX_DATA:
                self._bind()
            self._changed.notify_all()
            press = self._size > HIGH and not self._pressed
            if press:
                self._pressed = True
        if press and self.on_pressure is not None:
            self.on_pressure(True)
        return True

    def event(self, **content: Any) -> None:
        """Send an event."""
        with self._changed:
            if not self._closing:
                self._put(encode_message(content))

    def finish(self, result: Any) -> None:
        """Send the answer, behind everything that was sent before; the first one counts."""
        self._end({"result": to_plain(result)})

    def fail(self, fault: RingzeroError) -> None:
        """Send an error as the answer."""
        self._end({"error": fault.to_dict()})

    def frames(self) -> Iterator[Frame]:
        """Yield what the client sends until it leaves or the call is finished."""
        for frame in self._connection.frames(patient=True):
            if self.finished:
                return
            yield frame

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` is true, which `wake` tells, or the call or the client has gone.

        `condition` is called again after each `wake`, on this thread.
        """
        poller = select.poll()
        poller.register(self._looks, select.POLLIN)
        poller.register(self._connection.descriptor, select.POLLRDHUP)
        while not self.finished:
            self._waits = True
            if condition():
                break
            events = dict(poller.poll())
            if self._connection.descriptor in events:
                break
            os.eventfd_read(self._looks)
        self._waits = False

    def wake(self) -> None:
        """Have `wait_until` look again; from any thread."""
        if self._waits:
            with self._changed:
                if self._looks >= 0:
                    os.eventfd_write(self._looks, 1)

    def close(self) -> None:
        """Let the writer come to its end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            os.close(self._looks)
            self._looks = -1
        self._writer.join(_FAREWELL)

    def _end(self, answer: dict[str, Any]) -> None:
        with self._changed:
            if self.finished:
                return
            self.finished = True
            self._put(encode_message(answer))
            self._closing = True
            if self._looks >= 0:
                os.eventfd_write(self._looks, 1)

    def _put(self, data: bytes) -> None:
        self._bind()
        self._queue.append(data)
        self._size += len(data)
        self._changed.notify_all()

    def _bind(self) -> None:
        """Make frames of what is none yet."""
        if self._loose:
            self._queue.append(encode_data(self._stream, self._loose))
            self._size += len(self._queue[-1]) - len(self._loose)
            self._loose.clear()

    def _take(self) -> bytes:
        """Wait for something to send; b"" when nothing will come any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._loose or self._closing)
            if not self._queue:
                self._bind()
            return self._queue.popleft() if self._queue else b""

    def _work(self) -> None:
        try:
            self._pass_on()
        except Exception as fault:  # a fault of ours ends this conversation, not the machine
            self._connection.refuse(fault)
        finally:
            with self._changed:
                self._closing = True
            # The reader of this connection waits for frames that nobody needs any more.
            self._connection.shut()

    def _pass_on(self) -> None:
        while data := self._take():
            try:
                self._connection.send(data)
            except OSError:
                with self._changed:
                    self._closing = True
                    self._queue.clear()
                    self._loose.clear()
                    self._size = 0
                break
            with self._changed:
                self._size -= len(data)
                relieve = self._pressed and self._size < LOW
                if relieve:
                    self._pressed = False
            if relieve and self.on_pressure is not None:
                self.on_pressure(False)
        if self._pressed and self.on_pressure is not None:
            self.on_pressure(False)


class Connection:
    """One client."""

    def __init__(self, link: socket.socket, owner: Owner, name: str, handlers: Handlers) -> None:
        self._link = link
        self._owner = owner
        self._handlers = handlers
        self._name = name
        self._decoder = Decoder()
        self._frames: deque[Frame] = deque()
        self._descriptors = list[int]()
        self.call: Call | None = None
        self.busy = False

    def serve(self) -> None:
        """Speak with the client until it leaves; on a thread of its own."""
        with contextlib.ExitStack() as closing, contextlib.suppress(OSError):
            closing.enter_context(self._link)
            closing.callback(self._drop)
            try:
                # One thread reads, another may send: the socket's mode is none's to change.
                self._link.settimeout(None)
                self._bound_sends(PATIENCE)
                self.send(encode_message(greeting(self._name)))
                for frame in self.frames():
                    if not self._answer(frame):
                        return
                    self._drop()
            except ProtocolError as fault:
                self.send(encode_message({"error": fault.to_dict()}))
            except OSError:
                raise
            except Exception as fault:
                self.refuse(fault)

    def frames(self, *, patient: bool = False) -> Iterator[Frame]:
        """Yield frames until the client leaves; a `patient` reader waits long between them.

        A reader within a reader goes on where the outer one stands.
        """
        while True:
            while self._frames:
                yield self._frames.popleft()
            if not patient or self._decoder.pending:
                self._await_data()
            try:
                data, files, _, _ = socket.recv_fds(self._link, _READ, _MOST_DESCRIPTORS)
            except ConnectionError:
                return
            self._keep(files)
            if not data:
                return
            self._frames.extend(self._decoder.feed(data))

    def _keep(self, descriptors: Sequence[int]) -> None:
        """Keep descriptors for the next request; more than one request takes are closed."""
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self._descriptors += descriptors
        while len(self._descriptors) > _MOST_DESCRIPTORS:
            os.close(self._descriptors.pop())

    def _await_data(self) -> None:
        """Wait until the client has said more, or has left. Raises TimeoutError."""
        poller = select.poll()
        poller.register(self._link, select.POLLIN)
        if not poller.poll(PATIENCE * 1000):
            raise TimeoutError("a client that stopped in the middle")

    def _bound_sends(self, seconds: float) -> None:
        """Have sends fail that take longer; 0: they may take any time (socket(7))."""
        bound = _TIMEVAL.pack(int(seconds), 0)
        self._link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bound)

    @property
    def descriptor(self) -> int:
        """The socket's."""
        return self._link.fileno()

    def send(self, data: bytes) -> None:
        """Send bytes; waits for the client. Raises OSError."""
        self._link.sendall(data)

    def refuse(self, fault: Exception) -> None:
        """Tell the client of a fault of ours, which is the end of the conversation."""
        with contextlib.suppress(OSError):
            self.send(encode_message({"error": conversation_fault(fault).to_dict()}))

    def leave(self) -> None:
        """Close this process's end without a word."""
        self._link.close()

    def shut(self) -> None:
        """End the connection from another thread."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)

    def _drop(self) -> None:
        """Close descriptors that nobody has taken."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _answer(self, frame: Frame) -> bool:
        """Do what a request asks for; False when the connection is over."""
        if isinstance(frame, Data):
            raise ProtocolError("bytes of a stream, and no action that takes them")
        self.busy = True
        try:
            action, arguments = _request(frame)
            handler = self._handlers.get(action.name)
            if handler is None:
                raise NotFoundError(f"a machine's process knows no action {action.name!r}")
            action.require(self._name, self._owner.status)
            if action.streams and not isinstance(handler, TakesDescriptors):
                self._stream(action, handler, arguments)
                return False
            answer: dict[str, Any] = {"result": to_plain(self._do(handler, arguments))}
        except RingzeroError as fault:
            answer = {"error": fault.to_dict()}
        except OSError as fault:
            answer = {"error": host_error(fault, "do it for", self._name).to_dict()}
        except Exception as fault:  # a fault of ours ends this request, not the machine
            answer = {"error": conversation_fault(fault).to_dict()}
        try:
            self.send(encode_message(answer))
        finally:
            self.busy = False
        return True

    def _do(self, handler: Callable[..., Any] | TakesDescriptors, arguments: dict[str, Any]) -> Any:
        if not isinstance(handler, TakesDescriptors):
            return handler(self._owner, **arguments)
        given, self._descriptors = self._descriptors, []
        return handler.do(self._owner, given, **arguments)

    def _stream(
        self, action: Action, handler: Callable[..., Any], arguments: dict[str, Any]
    ) -> None:
        # Who reads slowly has what is sent held back.
        self._bound_sends(0)
        call = self.call = Call(self)
        try:
            handler(self._owner, call, **arguments)
            call.fail(ControlError(f"{action.name} ended without an answer"))
        except RingzeroError as fault:
            call.fail(fault)
        except OSError:
            pass  # the client went away
        except Exception as fault:
            call.fail(conversation_fault(fault))
        finally:
            call.close()


class Server:
    """The socket in a machine's directory."""

    def __init__(
        self,
        directory: MachineDirectory,
        owner: Owner,
        handlers: Handlers,
        listener: socket.socket | None = None,
    ) -> None:
        self._directory = directory
        self._owner = owner
        self._handlers = handlers
        self._connections: dict[Connection, threading.Thread] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._listener = listener or self._listen()
        self._thread = ServiceThread(owner, self._accept, "socket")

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        path = self._directory.file(SOCKET)
        # Left by a process that was killed; whoever holds the machine's lock may take it.
        path.unlink(missing_ok=True)
        try:
            # The file gets the socket's own mode.
            os.fchmod(listener.fileno(), 0o600)
            with self._directory.socket_address() as address:
                listener.bind(address)
            listener.listen(MAX_CONNECTIONS)
        except OSError as fault:
            listener.close()
            raise host_error(fault, "listen on", path) from fault
        return listener

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self, fault: RingzeroError) -> None:
        """Answer streaming calls with `fault`, let others have their answers, and end."""
        with contextlib.suppress(OSError):
            self._directory.file(SOCKET).unlink()
        with self._lock:
            self._closed = True
            connections = dict(self._connections)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in connections:
            if connection.call is not None:
                connection.call.fail(fault)
        deadline = time.monotonic() + _FAREWELL
        for connection, thread in connections.items():
            while connection.busy and thread.is_alive() and time.monotonic() < deadline:
                thread.join(0.01)
            connection.shut()

    def leave(self) -> None:
        """In a forked process: let go of the socket and its clients, which stay the original's."""
        self._listener.close()
        for connection in list(self._connections):
            connection.leave()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                # Too many open files, most likely: clients that leave give some back.
                time.sleep(0.1)
                continue
            try:
                self._admit(link)
            except Exception as fault:  # the end of this client, not of the socket
                with link, contextlib.suppress(OSError):
                    link.send(encode_message({"error": conversation_fault(fault).to_dict()}))

    def _admit(self, link: socket.socket) -> None:
        connection = Connection(link, self._owner, self._directory.name, self._handlers)
        thread = threading.Thread(
            target=self._serve, args=(connection,), name="client", daemon=True
        )
        with self._lock:
            welcome = len(self._connections) < MAX_CONNECTIONS and not self._closed
            if welcome and _is_ours(link):
                self._connections[connection] = thread
            else:
                link.close()
                return
        try:
            thread.start()
        except RuntimeError:
            # The host has no thread to spare: that is the end of this client, not of the socket.
            with self._lock:
                self._connections.pop(connection)
            link.close()

    def _serve(self, connection: Connection) -> None:
        try:
            connection.serve()
        finally:
            with self._lock:
                self._connections.pop(connection, None)


def _request(frame: Message) -> tuple[Action, dict[str, Any]]:
    content = frame.content
    if content.get("version") != VERSION:
        raise ProtocolError(f"version {content.get('version')!r} of the protocol is not spoken")
    arguments = content.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ProtocolError("arguments that are no object")
    action = get(content.get("action"))
    return action, action.complete(arguments)


def _is_ours(link: socket.socket) -> bool:
    """Whether the client is this user or root."""
    data = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return _UCRED.unpack(data)[1] in (os.geteuid(), 0)


def conversation_fault(fault: BaseException) -> ControlError:
    """Return the error for a fault of ours that ends one conversation."""
    return ControlError(
        f"internal error in the machine's process: {type(fault).__name__}: {fault}",
        hint="this is a fault in ringzero; the machine goes on",
    )
