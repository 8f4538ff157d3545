"""TCP: a socket of the host for each connection of a guest, and bytes between the two."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import struct
from typing import Protocol

from ringzero.core.frames import Buffer
from ringzero.net.proxy.loop import EXHAUSTED, GONE, READ, WRITE, EventLoop
from ringzero.net.proxy.sockets import open_socket
from ringzero.net.stack import icmp
from ringzero.net.stack.tcp.connection import Connection

# Reads from one socket before others have their turn.
_TURNS = 8
# Buffers of one sendmsg; Linux takes 1,024.
_MAX_BUFFERS = 256
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_UNREACHABLE = {
    errno.ENETUNREACH: icmp.NO_ROUTE,
    errno.EADDRNOTAVAIL: icmp.NO_ROUTE,
    errno.EAFNOSUPPORT: icmp.NO_ROUTE,
    errno.EHOSTUNREACH: icmp.NO_HOST,
    errno.ETIMEDOUT: icmp.NO_HOST,
    errno.EACCES: icmp.PROHIBITED,
    errno.EPERM: icmp.PROHIBITED,
}


Targets = tuple[tuple[str, int], ...]


class Owner(Protocol):
    """Whose relays they are."""

    loop: EventLoop
    # All that are open, so that they can be closed.
    relays: dict[Relay, None]
    # Connections for which the host had no socket left.
    turned_away: int

    def turn_away(self, connection: Connection, reason: tuple[int, int]) -> None:
        """Tell the guest that a connection cannot be."""
        ...

    def fail(self, relay: Relay, fault: Exception) -> None:
        """Hear of a fault of ours; the relay is to be ended, and its connection."""
        ...


class Relay:
    """A guest's connection (whose endpoint this is) and a socket of the host."""

    def __init__(self, owner: Owner, link: socket.socket) -> None:
        self._owner = owner
        self._loop = owner.loop
        self._link = link
        self.connection: Connection | None = None
        # Whether the host's side is up, and the guest's.
        self._linked = self._opened = False
        # Where to go when nobody is there, and why it went no further before.
        self._further: Targets = ()
        self._before: OSError | None = None
        self._host_ended = self._guest_ended = self._shut = False
        self._interest = 0
        self.closed = False
        owner.relays[self] = None

    @classmethod
    def to_host(cls, owner: Owner, connection: Connection, *targets: tuple[str, int]) -> None:
        """Connect to the first of `targets` that takes it, and answer the guest then."""
        cls._try(owner, connection, targets, None)

    @classmethod
    def _try(
        cls, owner: Owner, connection: Connection, targets: Targets, before: OSError | None
    ) -> None:
        """Go on with the first of `targets`; `before` is why an earlier one was not it."""
        target, further = targets[0], targets[1:]
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        try:
            link = open_socket(family, socket.SOCK_STREAM)
        except OSError as fault:
            cls._refused(owner, connection, further, before, fault)
            return
        relay = cls(owner, link)
        relay._further, relay._before = further, before
        relay.connection, connection.endpoint = connection, relay
        try:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.connect(target)
        except BlockingIOError:
            pass
        except OSError as fault:
            relay.close()
            cls._refused(owner, connection, further, before, fault)
            return
        relay._watch(WRITE)

    @classmethod
    def _refused(
        cls,
        owner: Owner,
        connection: Connection,
        further: Targets,
        before: OSError | None,
        fault: OSError,
    ) -> None:
        """Try the next, or tell the guest: of several reasons, that nobody listens."""
        if before is not None and fault.errno != errno.ECONNREFUSED:
            fault = before
        if further and fault.errno not in EXHAUSTED:
            cls._try(owner, connection, further, fault)
        else:
            _fail(owner, connection, fault)

    @classmethod
    def to_guest(cls, owner: Owner, link: socket.socket) -> Relay:
        """Keep a socket whose connection to a guest is yet to be made."""
        relay = cls(owner, link)
        relay._linked = True
        with contextlib.suppress(OSError):
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return relay

    # ---- the guest's side: Endpoint ---------------------------------------

    def opened(self) -> None:
        self._opened = True
        self._update()

    def receive(self, buffers: list[Buffer], size: int) -> int:
        if not self._linked:
            return 0
        count = self._send(buffers)
        if count < size:
            # The rest is about to be in the inbox.
            self._update(waiting=True)
        return count

    def ended(self) -> None:
        self._guest_ended = True
        self._end_output()

    def room(self) -> None:
        # Reading had stopped for want of room; what waits in the socket need not wait for a round.
        connection = self.connection
        if not self._interest & READ and not self.closed and connection is not None:
            self._read(connection)
            self._update()

    def lost(self) -> None:
        with contextlib.suppress(OSError):
            self._link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.close()

    # ---- the host's side --------------------------------------------------

    def _happened(self, events: int) -> None:
        try:
            self._serve(events)
        except Exception as fault:
            self._owner.fail(self, fault)

    def _serve(self, events: int) -> None:
        if not self._linked:
            self._connected()
            return
        connection = self.connection
        if connection is None:
            # The guest has not been found yet, and the peer has gone already.
            if events & GONE:
                self.close()
            return
        if events & WRITE:
            self._drain(connection)
        if events & (READ | GONE) and not self.closed:
            self._read(connection)
        if not self.closed:
            self._update()

    def _connected(self) -> None:
        connection = self.connection
        number = self._link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if connection is None:
            return
        if number:
            self.close()
            fault = OSError(number, os.strerror(number))
            self._refused(self._owner, connection, self._further, self._before, fault)
            return
        self._linked = True
        connection.accept()
        self._update()

    def _send(self, buffers: list[Buffer]) -> int:
        try:
            if len(buffers) == 1:
                return self._link.send(buffers[0])
            return self._link.sendmsg(buffers[:_MAX_BUFFERS])
        except BlockingIOError:
            return 0
        except OSError:
            self._abort()
            return sum(map(len, buffers))

    def _drain(self, connection: Connection) -> None:
        """Pass on what the socket did not take before."""
        while connection.inbox_size and not self.closed:
            buffers: list[Buffer] = list(itertools.islice(connection.inbox, _MAX_BUFFERS))
            size = sum(map(len, buffers))
            count = self._send(buffers)
            if self.closed:
                return
            connection.consume(count)
            if count < size:
                return
        self._end_output()

    def _end_output(self) -> None:
        """Tell the host's side that the guest is done, once all has been passed on."""
        connection = self.connection
        if not self._guest_ended or self._shut or self.closed or connection is None:
            return
        if not connection.inbox_size:
            self._shut = True
            with contextlib.suppress(OSError):
                self._link.shutdown(socket.SHUT_WR)
            self._settle()

    def _read(self, connection: Connection) -> None:
        if self._host_ended:
            return
        for _ in range(_TURNS):
            room = connection.room
            if room <= 0 or not self._opened:
                return
            wanted = min(room, connection.segment_size)
            try:
                data = self._link.recv(wanted)
            except BlockingIOError:
                return
            except OSError:
                self._abort()
                return
            if not data:
                self._host_ended = True
                connection.finish()
                self._settle()
                return
            connection.send(data)
            if len(data) < wanted:
                return

    def _settle(self) -> None:
        if self._host_ended and self._shut:
            self.close()

    def _abort(self) -> None:
        """The host's side is gone: so is the guest's."""
        self.close()
        if self.connection is not None:
            self.connection.abort()

    def _update(self, *, waiting: bool = False) -> None:
        """Watch for what can be dealt with; `waiting` says that there are bytes for the host."""
        connection = self.connection
        if self.closed or connection is None:
            return
        wanted = WRITE if waiting or connection.inbox_size else 0
        if self._opened and not self._host_ended and connection.room > 0:
            wanted |= READ
        if wanted != self._interest:
            self._watch(wanted)

    def _watch(self, wanted: int) -> None:
        # A socket that nothing is wanted of may still hang up, again and again: not watched.
        if not wanted:
            self._loop.forget(self._link)
        elif self._interest:
            self._loop.change(self._link, wanted)
        else:
            self._loop.watch(self._link, wanted, self._happened)
        self._interest = wanted

    def close(self) -> None:
        """Give the socket back."""
        if not self.closed:
            self.closed = True
            if self._interest:
                self._loop.forget(self._link)
                self._interest = 0
            self._link.close()
            self._owner.relays.pop(self, None)


def _fail(owner: Owner, connection: Connection, fault: OSError) -> None:
    """Tell a guest in TCP's or ICMP's words why there is no connection."""
    if fault.errno in EXHAUSTED:
        owner.turned_away += 1
    reason = _UNREACHABLE.get(fault.errno or 0)
    if reason is None:
        connection.refuse()
    else:
        owner.turn_away(connection, reason)
