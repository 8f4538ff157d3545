"""The ports of the host that lead to services: connections go round among machines that are well.

One thread, one event loop (`ringzero.net.proxy.loop`). A connection goes to the next machine in
turn, and to another where that one refuses; while there is none it waits. A machine that leaves
gets no new connections and keeps those that it has until they end, or the time for that is over.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable

from ringzero.config.ports import Forward
from ringzero.net.proxy.forwards import bind
from ringzero.net.proxy.loop import BREATH, EXHAUSTED, GONE, READ, WRITE, EventLoop, Timer

# Bytes for a side that does not read, before no more is read from the other.
_ROOM = 256 * 1024
_READ_SIZE = 64 * 1024
# Connections that are taken at once before others have their turn.
_TURNS = 32
# How long a connection waits for a machine, in seconds, and how many do so at each port.
WAIT, _MOST_WAITING = 30.0, 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# How long `call` waits for the loop, in seconds.
_PATIENCE = 10.0

# Where a machine's port is on the host.
Target = tuple[str, int]


class Balancer:
    """All ports of one deployment. Methods are called from any thread but the loop's."""

    def __init__(self) -> None:
        self.loop = EventLoop("balancer", lambda now: None, lambda: None)
        self._ports: dict[str, Port] = {}

    def start(self) -> None:
        """Begin."""
        self.loop.start()

    def close(self) -> None:
        """Shut all ports, and reset all connections."""
        for key in list(self._ports):
            self.shut(key)
        self.loop.close()

    def listen(self, key: str, forward: Forward) -> Forward:
        """Listen at a port of the host, by the name `key`; return it with its number.

        Raises ConflictError where it is taken, HostError.
        """
        made, link = bind(forward)
        port = Port(self.loop, made, link)
        self._ports[key] = port
        self.loop.call(port.open)
        return made

    def forwards(self) -> dict[str, Forward]:
        """Return the ports, by their names."""
        return {key: port.forward for key, port in self._ports.items()}

    def lead(self, key: str, targets: Iterable[Target]) -> None:
        """Have new connections to a port go to `targets` from now on; when it returns, they do."""
        port, wanted = self._ports[key], list(targets)
        self._do(lambda: port.lead(wanted))

    def shut(self, key: str) -> None:
        """Take no more connections at a port; those that there are are reset."""
        port = self._ports.pop(key)
        self._do(port.close)

    def drain(self, targets: Iterable[Target], seconds: float) -> None:
        """Wait until no connection leads to `targets`, which get no new ones; then reset them."""
        gone, over = set(targets), threading.Event()

        def begin() -> None:
            Drain(self, gone, seconds, over)

        self.loop.call(begin)
        over.wait(seconds + _PATIENCE)

    def counters(self) -> dict[str, dict[str, int]]:
        """Return of each port: connections so far, open and waiting ones, lost ones."""
        return {key: port.counters() for key, port in self._ports.items()}

    def connections(self) -> list[Connection]:
        """Return all connections; on the loop's thread."""
        return [each for port in list(self._ports.values()) for each in port.open_ones]

    def _do(self, call: Callable[[], None]) -> None:
        """Have the loop call something, and wait until it has."""
        done = threading.Event()

        def act() -> None:
            try:
                call()
            finally:
                done.set()

        self.loop.call(act)
        done.wait(_PATIENCE)


class Drain:
    """Waits for the end of the connections to some machines."""

    def __init__(
        self, balancer: Balancer, gone: set[Target], seconds: float, over: threading.Event
    ) -> None:
        self._balancer = balancer
        self._gone = gone
        self._until = balancer.loop.now + seconds
        self._over = over
        self._look()

    def _look(self) -> None:
        left = [each for each in self._balancer.connections() if each.target in self._gone]
        loop = self._balancer.loop
        if left and loop.now < self._until:
            loop.at(min(self._until, loop.now + BREATH / 4), self._look)
            return
        for connection in left:
            connection.reset()
        self._over.set()


class Port:
    """A port of the host; all but the constructor is called on the loop's thread."""

    def __init__(self, loop: EventLoop, forward: Forward, link: socket.socket) -> None:
        self.loop = loop
        self.forward = forward
        self._link = link
        self._targets: list[Target] = []
        self._turn = 0
        self._closed = False
        self.open_ones: dict[Connection, None] = {}
        self._waiting: deque[Connection] = deque()
        self._taken = self.lost = 0

    def open(self) -> None:
        """Take connections."""
        if not self._closed:
            self.loop.watch(self._link, READ, self._accept)

    def close(self) -> None:
        """Give all back."""
        self._closed = True
        self.loop.forget(self._link)
        self._link.close()
        for connection in list(self.open_ones):
            connection.reset()

    def lead(self, targets: list[Target]) -> None:
        """Lead new connections elsewhere, and those that wait."""
        self._targets = targets
        waiting, self._waiting = self._waiting, deque()
        for connection in waiting:
            if not connection.closed:
                connection.find()

    def counters(self) -> dict[str, int]:
        """Return the numbers of connections."""
        waiting = sum(not connection.closed for connection in self._waiting)
        return {
            "connections": self._taken,
            "open": len(self.open_ones),
            "waiting": waiting,
            "lost": self.lost,
        }

    def next(self, tried: set[Target]) -> Target | None:
        """Return the machine whose turn it is, of those that were not tried."""
        for _ in self._targets:
            self._turn = (self._turn + 1) % len(self._targets)
            target = self._targets[self._turn]
            if target not in tried:
                return target
        return None

    def wait(self, connection: Connection) -> None:
        """Have a connection wait for a machine."""
        if len(self._waiting) >= _MOST_WAITING:
            connection.reset()
        else:
            self._waiting.append(connection)

    def _accept(self, events: int) -> None:
        for _ in range(_TURNS):
            try:
                link, _peer = self._link.accept()
            except BlockingIOError:
                return
            except OSError as fault:
                if fault.errno in EXHAUSTED:
                    # Whoever wants in waits, and nobody spins.
                    self.loop.forget(self._link)
                    self.loop.at(self.loop.now + BREATH, self.open)
                return
            link.setblocking(False)
            self._taken += 1
            Connection(self, link).find()


class _End:
    """One side of a connection: its socket, and what it has not taken yet."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.outbox = bytearray()
        self.interest = 0
        # Whether it has said all, and whether it was told that the other has.
        self.ended = self.told = False


class Connection:
    """A client, and the machine that it was led to."""

    def __init__(self, port: Port, link: socket.socket) -> None:
        self._port = port
        self._loop = port.loop
        self._client = _End(link)
        self._server: _End | None = None
        self._linked = False
        self._tried: set[Target] = set()
        self._timer: Timer | None = None
        self.target: Target | None = None
        self.closed = False
        with contextlib.suppress(OSError):
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        port.open_ones[self] = None

    def find(self) -> None:
        """Connect to the next machine, or wait for one."""
        while (target := self._port.next(self._tried)) is not None:
            self._tried.add(target)
            family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
            try:
                link = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            except OSError:
                self.reset()
                return
            try:
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link.connect(target)
            except BlockingIOError:
                pass
            except OSError:
                link.close()
                continue
            self.target, self._server = target, _End(link)
            self._loop.watch(link, WRITE, lambda _: self._guard(self._connected))
            return
        # All refuse, or there is none: what is told next of them is news.
        self._tried.clear()
        if self._timer is None:
            self._timer = self._loop.at(self._loop.now + WAIT, self._give_up)
            # Of nothing but its hanging up: it is not waited for then.
            self._loop.watch(self._client.link, 0, self._client_happened)
        self._port.wait(self)

    def _give_up(self) -> None:
        if not self._linked and not self.closed:
            self.reset()

    def _connected(self) -> None:
        server = self._server
        assert server is not None
        if server.link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._loop.forget(server.link)
            server.link.close()
            self.target = self._server = None
            self.find()
            return
        self._linked = True
        if self._timer is not None:
            self._timer.cancel()
        for end in (self._client, server):
            self._loop.forget(end.link)
            self._watch(end, READ)

    def _client_happened(self, events: int) -> None:
        self._guard(lambda: self._happened(self._client, self._server, events))

    def _server_happened(self, events: int) -> None:
        self._guard(lambda: self._happened(self._server, self._client, events))

    def _guard(self, act: Callable[[], None]) -> None:
        """Do something; a fault of ours ends this connection, and no other."""
        try:
            act()
        except Exception:
            traceback.print_exc()
            self.reset()

    def _happened(self, end: _End | None, other: _End | None, events: int) -> None:
        if self.closed or end is None:
            return
        if not self._linked or other is None:
            # It has gone before a machine was found for it.
            if events & GONE:
                self.reset()
            return
        if events & WRITE:
            self._drain(end, other)
        if events & (READ | GONE) and not self.closed and not end.ended:
            self._pass(end, other)
        elif events & GONE and not self.closed:
            if end.link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.reset()
            else:
                # Both have said all to each other; what is left is on its way.
                self._watch(end, 0)

    def _pass(self, end: _End, other: _End) -> None:
        """Read from one side, and write to the other."""
        try:
            data = end.link.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self.reset()
            return
        if not data:
            end.ended = True
        elif other.outbox:
            other.outbox += data
        else:
            count = self._send(other, data)
            other.outbox += memoryview(data)[count:]
        self._settle(end, other)

    def _drain(self, end: _End, other: _End) -> None:
        """Write what waits."""
        with memoryview(end.outbox) as view:
            count = self._send(end, view[:_ROOM])
        if not self.closed:
            del end.outbox[:count]
            self._settle(other, end)

    def _send(self, end: _End, data: bytes | memoryview) -> int:
        try:
            return end.link.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.reset()
            return len(data)

    def _settle(self, end: _End, other: _End) -> None:
        """Tell the other side of the end, and watch for what can be dealt with."""
        if self.closed:
            return
        if end.ended and not other.outbox and not other.told:
            other.told = True
            with contextlib.suppress(OSError):
                other.link.shutdown(socket.SHUT_WR)
        if self._client.told and self._server is not None and self._server.told:
            self._close()
            return
        for one, two in ((end, other), (other, end)):
            wanted = WRITE if one.outbox else 0
            if not one.ended and len(two.outbox) < _ROOM:
                wanted |= READ
            if wanted != one.interest:
                self._watch(one, wanted)

    def _watch(self, end: _End, wanted: int) -> None:
        # A socket that nothing is wanted of may still hang up, again and again: not watched.
        if not wanted:
            self._loop.forget(end.link)
        elif end.interest:
            self._loop.change(end.link, wanted)
        else:
            happened = self._client_happened if end is self._client else self._server_happened
            self._loop.watch(end.link, wanted, happened)
        end.interest = wanted

    def reset(self) -> None:
        """End it at once; both sides hear of it."""
        if self.closed:
            return
        self._port.lost += 1
        for end in (self._client, self._server):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._close()

    def _close(self) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        for end in (self._client, self._server):
            if end is not None:
                self._loop.forget(end.link)
                end.link.close()
        self._port.open_ones.pop(self, None)
