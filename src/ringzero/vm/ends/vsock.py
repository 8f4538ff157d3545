"""The host's ends of a guest's socket device, as Unix sockets, in the way of Firecracker.

PATH        is listened on. Who connects writes "CONNECT PORT\\n", and reads "OK PORT\\n" once
            the guest has taken the connection to its port; from there on it is the stream.
PATH_PORT   is connected to when the guest connects to that port of the host (CID 2).

One thread moves all bytes. It never holds its own lock while it calls the
device, which calls under its own.
"""

from __future__ import annotations

import os
import re
import select
import socket
import threading
from pathlib import Path

from ringzero.devices.virtio.kinds.vsock import NO_RECEIVE, NO_SEND, Connection, Endpoint, Vsock
from ringzero.errors import HostError, NotFoundError, TimeoutExpiredError
from ringzero.host.files import host_error
from ringzero.host.service import OnFault, ServiceThread
from ringzero.host.unixsocket import Listener, connect

_CONNECT = re.compile(rb"CONNECT ([0-9]{1,10})\r?\n")
# The longest line that asks for a connection.
_MAX_LINE = 32
# Clients at once, with those that have not said yet what they want.
MAX_CLIENTS = 512
_READ = 64 * 1024
# Reads from one client before others have their turn.
_TURNS = 4
_PATIENCE = 2.0
_BOTH = NO_RECEIVE | NO_SEND


class _Client:
    """One Unix socket and its stream. What the device calls only notes and wakes the thread."""

    def __init__(self, owner: VsockSockets) -> None:
        self._owner = owner
        self.connection: Connection | None = None
        self.socket: socket.socket | None = None
        # Set by the device, under the owner's lock.
        self.open = self.over = False
        self.guest_shut = 0
        self.outbox = bytearray()
        # The thread's own: what it read and the guest has not taken, what it told whom.
        self.inbox = b""
        self.greeted = False
        self.ended = self.hung_up = self.told_end = False
        self.interest = -1

    def opened(self) -> None:
        self._note(open=True)

    def receive(self, data: bytes) -> None:
        with self._owner.lock:
            self.outbox += data
        self._owner.wake(self)

    def shut(self, flags: int) -> None:
        self._note(guest_shut=self.guest_shut | flags)

    def room(self) -> None:
        self._owner.wake(self)

    def closed(self) -> None:
        self._note(over=True)

    def _note(self, **changes: int) -> None:
        with self._owner.lock:
            for name, value in changes.items():
                setattr(self, name, value)
        self._owner.wake(self)


class VsockSockets:
    """Listens on `path` for connections into the guest, and connects for the guest.

    Raises ConflictError when somebody listens there, HostError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self._device: Vsock
        self._listener = Listener(path)
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.EPOLLIN)
        self._poll.register(self._listener.socket, select.EPOLLIN)
        # By descriptor; and those that something has happened to.
        self._clients: dict[int, _Client] = {}
        self._noted: dict[_Client, None] = {}
        self._closing = False
        self.on_fault: OnFault | None = None
        self._thread = ServiceThread(self, self._work, "vsock")

    def connect(self, device: Vsock) -> None:
        """Name the device whose host this is."""
        self._device = device

    def dial(self, port: int, timeout: float | None = 10.0) -> socket.socket:
        """Return a socket connected to a port of the guest.

        Raises NotFoundError where nobody in the guest listens, HostError, and
        TimeoutExpiredError after `timeout` seconds.
        """
        link = connect(self.path)
        try:
            link.settimeout(timeout)
            link.sendall(b"CONNECT %d\n" % port)
            answer = b""
            # Byte by byte: what follows the line is the stream's.
            while not answer.endswith(b"\n"):
                byte = link.recv(1)
                if not byte:
                    raise NotFoundError(f"nobody in the guest listens on vsock port {port}")
                answer += byte
            link.settimeout(None)
        except TimeoutError as fault:
            link.close()
            raise TimeoutExpiredError(f"vsock port {port} did not answer") from fault
        except OSError as fault:
            link.close()
            raise host_error(fault, "connect by", self.path) from fault
        except BaseException:
            link.close()
            raise
        return link

    def start(self) -> None:
        """Begin to listen and to move bytes."""
        self._thread.start()

    def close(self) -> None:
        """Pass on what the guest has sent, as far as it is taken at once, and end."""
        self._closing = True
        if self._thread.ident:
            os.eventfd_write(self._wake, 1)
            self._thread.join(_PATIENCE)
        self._listener.close()
        for client in list(self._clients.values()):
            self._end(client)
        self._poll.close()
        os.close(self._wake)

    def leave(self) -> None:
        """In a forked process: let go of the sockets, which stay the original's."""
        self._listener.socket.close()
        for client in list(self._clients.values()):
            if client.socket is not None:
                client.socket.close()
        self._poll.close()
        os.close(self._wake)

    # ---- the device's calls -----------------------------------------------

    def requested(self, connection: Connection) -> Endpoint | None:
        """Connect to the socket of the port that the guest asks for, on the thread."""
        client = _Client(self)
        client.connection = connection
        client.greeted = True
        self.wake(client)
        return client

    def wake(self, client: _Client) -> None:
        """Have the thread look at a client; from any thread."""
        with self.lock:
            if client.over and client.socket is None:
                # Nothing was begun for it: a guest that asks and leaves fills no memory.
                self._noted.pop(client, None)
                return
            self._noted[client] = None
        if not self._closing:
            os.eventfd_write(self._wake, 1)

    # ---- the thread -------------------------------------------------------

    def _work(self) -> None:
        while not self._closing:
            for descriptor, events in self._poll.poll():
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                elif descriptor == self._listener.socket.fileno():
                    self._accept()
                elif descriptor in self._clients:
                    client = self._clients[descriptor]
                    client.hung_up |= bool(events & (select.EPOLLHUP | select.EPOLLERR))
                    self._attend(client)
            self._attend_noted()
        self._attend_noted()

    def _attend_noted(self) -> None:
        with self.lock:
            noted = list(self._noted)
            self._noted.clear()
        for client in noted:
            self._attend(client)

    def _accept(self) -> None:
        try:
            link, _ = self._listener.socket.accept()
        except OSError:
            return
        if len(self._clients) >= MAX_CLIENTS:
            link.close()
            return
        client = _Client(self)
        self._adopt(client, link)
        self._attend(client)

    def _adopt(self, client: _Client, link: socket.socket) -> None:
        link.setblocking(False)
        with self.lock:
            client.socket = link
        self._clients[link.fileno()] = client

    def _attend(self, client: _Client) -> None:
        """Do all that can be done for a client now."""
        if client.socket is None and not self._reach(client):
            return
        if not client.greeted and not self._greet(client):
            return
        try:
            self._write(client)
            over = client.over and not client.outbox
            if not over:
                self._read(client)
        except OSError:
            # Gone, in whatever way: neither side of it is of use.
            self._hang_up(client)
            over = client.over
        if over:
            self._end(client)
        elif client.socket is not None:
            self._watch(client)

    def _reach(self, client: _Client) -> bool:
        """Connect to whom the guest has asked for; False where nobody is there."""
        connection = client.connection
        if connection is None or client.over:
            return False
        try:
            link = connect(f"{self.path}_{connection.host_port}")
        except HostError:
            connection.close()
            return False
        self._adopt(client, link)
        client.open = True
        connection.accept()
        return True

    def _greet(self, client: _Client) -> bool:
        """Read what a client wants, and ask the guest; False until the guest has answered."""
        if client.connection is None:
            self._hear(client)
        if client.over or client.hung_up:
            if client.connection is not None:
                client.connection.close()
            self._end(client)
            return False
        if not client.open or client.connection is None:
            if client.socket is not None:
                self._watch(client)
            return False
        answer = b"OK %d\n" % client.connection.host_port
        client.greeted = True
        try:
            # It is the first thing in an empty buffer, and fits.
            if client.socket is not None:
                client.socket.send(answer)
        except OSError:
            client.hung_up = True
        return True

    def _hear(self, client: _Client) -> None:
        if client.socket is None:
            return
        try:
            data = client.socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.inbox += data
        line, end, rest = client.inbox.partition(b"\n")
        found = _CONNECT.fullmatch(line + end)
        if found is None or int(found[1]) >= 1 << 32:
            # Nothing that could become a request.
            client.over = bool(end) or not data or len(client.inbox) > _MAX_LINE
            return
        client.inbox = rest
        client.connection = self._device.connect(int(found[1]), client)
        client.over = client.over or client.connection is None

    def _write(self, client: _Client) -> None:
        link, connection = client.socket, client.connection
        if link is None or connection is None:
            return
        while client.outbox:
            with self.lock:
                data = bytes(client.outbox[: 4 * _READ])
            try:
                count = link.send(data)
            except BlockingIOError:
                return
            except ConnectionError:
                connection.shut(NO_RECEIVE)
                count = len(data)
            with self.lock:
                del client.outbox[:count]
            connection.took(count)
        if client.guest_shut & NO_SEND and not client.over:
            link.shutdown(socket.SHUT_WR)
        if client.guest_shut & NO_RECEIVE:
            link.shutdown(socket.SHUT_RD)

    def _read(self, client: _Client) -> None:
        link, connection = client.socket, client.connection
        if link is None or connection is None:
            return
        for _ in range(_TURNS):
            if not client.inbox and not client.ended:
                try:
                    client.inbox = link.recv(_READ)
                except BlockingIOError:
                    return
                except ConnectionError:
                    # It left without reading all that it was sent.
                    client.hung_up = True
                client.ended = not client.inbox
            if client.inbox:
                taken = connection.push(client.inbox)
                client.inbox = client.inbox[taken:]
                if client.inbox:
                    return
            if client.ended and not client.told_end:
                client.told_end = True
                connection.shut(NO_SEND)
            if client.ended:
                if client.hung_up:
                    connection.shut(_BOTH)
                return
        if client.hung_up:
            self.wake(client)

    def _hang_up(self, client: _Client) -> None:
        if client.connection is not None:
            client.connection.close()
        with self.lock:
            client.outbox.clear()
            client.over = True

    def _watch(self, client: _Client) -> None:
        """Listen for what can be dealt with; a hang-up is heard of once."""
        if client.socket is None:
            return
        reads = not client.inbox and not client.ended and not client.guest_shut & NO_RECEIVE
        if not client.greeted:
            reads = client.connection is None
        interest = (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if client.outbox else 0)
        if client.hung_up:
            interest = -1
        if interest == client.interest:
            return
        if interest < 0:
            self._poll.unregister(client.socket)
        elif client.interest < 0:
            self._poll.register(client.socket, interest)
        else:
            self._poll.modify(client.socket, interest)
        client.interest = interest

    def _end(self, client: _Client) -> None:
        with self.lock:
            link, client.socket = client.socket, None
            client.over = True
            self._noted.pop(client, None)
        if link is not None:
            del self._clients[link.fileno()]
            link.close()
