"""An NBD server: sockets, and a thread for each client.

A client has its own thread and one piece of memory, so one that is slow, silent or half
gone holds up nobody else. A request is done before the next is read, and nothing of a disk
is held while a client is waited for.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ringzero.disk.instant import LiveDisk
from ringzero.disk.nbd import wire
from ringzero.disk.nbd.handshake import Handshake, Offer
from ringzero.disk.nbd.transmission import PIECE, Broken, Fault, Transmission
from ringzero.errors import ConflictError, HostError, InvalidValueError, NotFoundError
from ringzero.host.unixsocket import Listener
from ringzero.records import record

# IANA's "nbd".
PORT = 10809
# At once, of all exports: nbdcopy makes 4 connections, QEMU 1.
MOST_CLIENTS = 64
# How long a client may take for the handshake, in seconds.
_HANDSHAKE = 30.0
# How long whoever stops the server waits for a request at the disk, in seconds.
_LAST_REQUEST = 30.0


@record
class Export:
    """A disk under a name. `read_only` keeps clients from changing it; the disk may be, too."""

    name: str
    live: LiveDisk
    read_only: bool = False
    description: str = ""

    @property
    def offer(self) -> Offer:
        """What a client hears of it."""
        read_only = self.read_only or self.live.read_only
        return Offer(self.name, self.live.size, read_only, self.description)


class Server:
    """Serves its exports on sockets until `close`."""

    def __init__(self) -> None:
        self._exports: dict[str, Export] = {}
        self._listeners: list[Listener | socket.socket] = []
        self._clients: dict[_Client, threading.Thread] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._served = 0
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread: threading.Thread | None = None

    # ---- exports -----------------------------------------------------------

    @property
    def exports(self) -> list[Export]:
        """What there is, the oldest first."""
        with self._changed:
            return list(self._exports.values())

    def add(self, export: Export) -> None:
        """Offer one more disk. Raises ConflictError, InvalidValueError."""
        if len(export.name.encode()) > wire.NAME_MAX or "\0" in export.name:
            raise InvalidValueError("the export's name is too long", hint="4096 bytes at most")
        with self._changed:
            if export.name in self._exports:
                raise ConflictError(f"there is an export {export.name!r} already")
            self._exports[export.name] = export

    def remove(self, name: str) -> None:
        """Offer a disk no more, and leave the clients that use it. Raises NotFoundError."""
        with self._changed:
            if name not in self._exports:
                known = ", ".join(map(repr, self._exports))
                raise NotFoundError(f"there is no export {name!r}", hint=known or None)
            export = self._exports.pop(name)
            using = {c: t for c, t in self._clients.items() if c.export is export}
        _leave(using)

    def clients(self, name: str | None = None) -> int:
        """Return how many clients there are, of all exports or of one."""
        with self._changed:
            return sum(
                name is None or (c.export is not None and c.export.name == name)
                for c in self._clients
            )

    # ---- sockets -----------------------------------------------------------

    @property
    def listening(self) -> bool:
        """Whether clients can come."""
        return bool(self._listeners)

    def url(self, name: str) -> str:
        """Return how clients name an export, on the socket that is listened on first."""
        if not self._listeners:
            return ""
        first = self._listeners[0]
        if isinstance(first, Listener):
            return url_of(name, path=first.path)
        host, port = first.getsockname()[:2]
        return url_of(name, host=host, port=port)

    def listen_unix(self, path: Path) -> None:
        """Listen on a Unix socket for this user only. Raises ConflictError, HostError."""
        self._listen(Listener(path))

    def listen_tcp(self, host: str = "127.0.0.1", port: int = PORT) -> int:
        """Listen on TCP, port 0 for a free one; return the port. Raises HostError."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = socket.create_server(found[4][:2], family=found[0], backlog=64)
        except OSError as fault:
            raise HostError(
                f"cannot listen on {host}, port {port}: {fault.strerror or fault}",
                hint="choose another port, or 0 for a free one",
            ) from fault
        listener.setblocking(False)
        self._listen(listener)
        return int(listener.getsockname()[1])

    def _listen(self, listener: Listener | socket.socket) -> None:
        inner = listener.socket if isinstance(listener, Listener) else listener
        with self._changed:
            self._listeners.append(listener)
            self._selector.register(inner, selectors.EVENT_READ)
            if self._thread is None:
                self._thread = threading.Thread(target=self._accept_all, name="nbd", daemon=True)
                self._thread.start()
        os.write(self._woken, b"\0")

    def close(self) -> None:
        """Stop to listen and leave all clients; a request that is at a disk is done first."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            clients = dict(self._clients)
            self._exports.clear()
        os.write(self._woken, b"\0")
        if self._thread is not None:
            self._thread.join()
        for listener in self._listeners:
            listener.close()
        _leave(clients)
        self._selector.close()
        os.close(self._wake)
        os.close(self._woken)

    def leave(self) -> None:
        """In a forked process: close the sockets, which stay the original's."""
        # Its threads are not here, and its locks may be held for ever.
        for listener in self._listeners:
            (listener.socket if isinstance(listener, Listener) else listener).close()
        for client in list(self._clients):
            client.drop()
        self._selector.close()
        for descriptor in (self._wake, self._woken):
            os.close(descriptor)

    def wait_closed(self) -> None:
        """Wait until somebody closes it."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed)

    def wait_served(self) -> None:
        """Wait until a client was there that had chosen an export, and all have left."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._served and not self._clients))

    # ---- threads -----------------------------------------------------------

    def _accept_all(self) -> None:
        while True:
            events = self._selector.select()
            with self._changed:
                if self._closed:
                    return
            for key, _ in events:
                if key.fd == self._wake:
                    os.read(self._wake, 64)
                else:
                    self._accept(key.fileobj)

    def _accept(self, listener: object) -> None:
        assert isinstance(listener, socket.socket)
        try:
            link, _ = listener.accept()
        except OSError:
            # It has gone, or the host has no descriptor left; who waits there waits on.
            time.sleep(0.01)
            return
        link.setblocking(True)
        client = _Client(self, link)
        thread = threading.Thread(target=client.serve, name="nbd-client", daemon=True)
        with self._changed:
            welcome = not self._closed and len(self._clients) < MOST_CLIENTS
            if welcome:
                self._clients[client] = thread
        if not welcome:
            link.close()
            return
        try:
            thread.start()
        except RuntimeError:
            self.forget(client)
            link.close()

    def offers(self) -> dict[str, Offer]:
        """Return what clients may choose of."""
        return {export.name: export.offer for export in self.exports}

    def enter(self, client: _Client, name: str) -> Export | None:
        """Have a client use an export; None when it has gone meanwhile."""
        with self._changed:
            client.export = self._exports.get(name)
            if client.export is not None:
                self._served += 1
            return client.export

    def forget(self, client: _Client) -> None:
        """Hear that a client has gone."""
        with self._changed:
            self._clients.pop(client, None)
            self._changed.notify_all()


class _Client:
    """One connection."""

    def __init__(self, server: Server, link: socket.socket) -> None:
        self.export: Export | None = None
        self._server = server
        self._link = link
        # What was received and not taken.
        self._ahead = b""

    def leave(self) -> None:
        """Have its thread end; any thread."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        """Close the socket of this process."""
        self._link.close()

    def serve(self) -> None:
        """Do everything for it; on its thread."""
        try:
            transmission = self._negotiate()
            if transmission is not None:
                self._answer_all(transmission)
        except (OSError, Broken):
            # It has gone, or does not speak NBD. Nobody else is concerned.
            pass
        finally:
            self._link.close()
            self._server.forget(self)

    def _negotiate(self) -> Transmission | None:
        with contextlib.suppress(OSError):
            self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Who is gone without a word is noticed at last.
        self._link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        export: Export | None = None
        handshake = Handshake(self._server.offers)
        deadline = time.monotonic() + _HANDSHAKE
        self._link.settimeout(_HANDSHAKE)
        self._link.sendall(handshake.greeting)
        while handshake.chosen is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._link.settimeout(left)
            data = self._link.recv(65536)
            if not data:
                return None
            answer = handshake.feed(data)
            if handshake.chosen is not None:
                # Before it hears so: who then removes the export finds it.
                export = self._server.enter(self, handshake.chosen.name)
            if answer:
                self._link.sendall(answer)
            if handshake.over:
                return None
        if export is None:
            return None
        self._link.settimeout(None)
        self._ahead = handshake.rest
        return Transmission(
            export.live,
            read_only=export.read_only,
            structured=handshake.structured,
            allocation=handshake.allocation,
        )

    def _answer_all(self, transmission: Transmission) -> None:
        head = bytearray(wire.REQUEST.size)
        while self._receive(memoryview(head)):
            request = wire.parse_request(bytes(head))
            if request is None or request.kind == wire.CMD_DISC:
                return
            fault = transmission.check(request)
            if request.kind == wire.CMD_WRITE:
                fault = self._take_payload(transmission, request, fault)
            if fault is None:
                try:
                    for parts in transmission.answer(request):
                        self._send(parts)
                except Fault as found:
                    fault = found
            if fault is not None:
                self._send(transmission.failed(request, fault))

    def _take_payload(
        self, transmission: Transmission, request: wire.Request, fault: Fault | None
    ) -> Fault | None:
        """Receive what is to be written, and write it unless something is wrong already."""
        end = request.offset + request.length
        for start in range(request.offset, end, PIECE):
            view = transmission.buffer[: min(PIECE, end - start)]
            if not self._receive(view):
                raise Broken
            if fault is None:
                try:
                    transmission.write(start, view)
                except Fault as found:
                    fault = found
        return fault

    def _receive(self, view: memoryview) -> bool:
        """Fill `view`; False when the client has gone."""
        ahead = self._ahead[: len(view)]
        if ahead:
            view[: len(ahead)] = ahead
            self._ahead = self._ahead[len(ahead) :]
            view = view[len(ahead) :]
        while view:
            count = self._link.recv_into(view)
            if not count:
                return False
            view = view[count:]
        return True

    def _send(self, parts: Sequence[bytes | memoryview]) -> None:
        sent = self._link.sendmsg(parts)
        for part in parts:
            if sent >= len(part):
                sent -= len(part)
                continue
            self._link.sendall(part[sent:])
            sent = 0


def url_of(name: str, *, path: Path | None = None, host: str = "", port: int = PORT) -> str:
    """Return how clients name an export (the NBD project's doc/uri.md)."""
    from urllib.parse import quote

    if path is not None:
        return f"nbd+unix:///{quote(name)}?socket={quote(str(path), safe='/')}"
    place = f"[{host}]" if ":" in host else host
    return f"nbd://{place}{'' if port == PORT else f':{port}'}{f'/{quote(name)}' if name else ''}"


def _leave(clients: dict[_Client, threading.Thread]) -> None:
    """Leave clients, and wait until nothing is done for them any more."""
    for client in clients:
        client.leave()
    deadline = time.monotonic() + _LAST_REQUEST
    for thread in clients.values():
        if thread.ident is not None:
            thread.join(max(0.0, deadline - time.monotonic()))
