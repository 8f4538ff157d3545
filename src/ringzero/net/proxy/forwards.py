"""Ports of the host that lead to a guest."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Protocol

from ringzero.config.ports import Forward
from ringzero.errors import ConflictError, HostError, InvalidValueError, NotFoundError
from ringzero.net.proxy.loop import BREATH, EXHAUSTED, READ, EventLoop
from ringzero.net.proxy.sockets import spare
from ringzero.net.proxy.tcp import Owner, Relay
from ringzero.net.proxy.udp import UdpFlows
from ringzero.net.stack import addresses
from ringzero.net.stack.gateway import Gateway
from ringzero.net.stack.ip import Path
from ringzero.records import replace

_BACKLOG = 128
# Connections that are taken at once before others have their turn.
_TURNS = 32
_LARGEST = 65535


class Host(Owner, Protocol):
    """What forwarded ports need of their network."""

    loop: EventLoop
    gateway: Gateway
    flows: UdpFlows

    def guest_addresses(self) -> list[bytes]:
        """Return where the guest may be that is meant where none is named, the likeliest first."""
        ...


class Forwards:
    """All forwarded ports. `open` and `shut` are called from any thread, before the loop starts
    or by `EventLoop.call`.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._open: dict[Forward, socket.socket] = {}
        # The last port of the gateway's that a client got whose own was taken.
        self._next_port = 49152

    def bind(self, forward: Forward) -> tuple[Forward, socket.socket]:
        """As the function `bind`, from any thread; `open` begins to serve it."""
        return bind(forward)

    def open(self, forward: Forward, link: socket.socket) -> None:
        """Serve a forward that was bound."""
        self._open[forward] = link
        self._watch(forward, link)

    def shut(self, forward: Forward) -> None:
        """Serve it no longer; connections that are up go on. Raises NotFoundError."""
        link = self._open.pop(forward, None)
        if link is None:
            raise NotFoundError(f"no port is forwarded as {forward}")
        self._host.loop.forget(link)
        self._host.flows.forget_link(link)
        link.close()

    def list(self) -> list[Forward]:
        """Return what is forwarded."""
        return list(self._open)

    def close(self) -> None:
        """Give all sockets back."""
        for link in self._open.values():
            self._host.loop.forget(link)
            link.close()
        self._open.clear()

    def _watch(self, forward: Forward, link: socket.socket) -> None:
        if self._open.get(forward) is not link:
            return
        if forward.protocol == "tcp":
            self._host.loop.watch(link, READ, lambda _: self._accept(forward, link))
        else:
            self._host.loop.watch(link, READ, lambda _: self._receive(forward, link))

    def _reach(self, forward: Forward, call: Callable[[Path | None], None]) -> None:
        """Find the guest, and call `call` with the way to it; None where it is nowhere."""
        named = [addresses.parse(forward.guest)] if forward.guest else None
        places = named or self._host.guest_addresses()

        def found(path: Path | None) -> None:
            if path is None and places:
                self._host.gateway.reach(places.pop(0), found)
            else:
                call(path)

        found(None)

    # ---- TCP --------------------------------------------------------------

    def _accept(self, forward: Forward, link: socket.socket) -> None:
        for _ in range(_TURNS):
            try:
                client, peer = link.accept()
                client = spare(client)
            except BlockingIOError:
                return
            except OSError as fault:
                if fault.errno in EXHAUSTED:
                    self._host.turned_away += 1
                    loop = self._host.loop
                    loop.forget(link)
                    loop.at(loop.now + BREATH, lambda: self._watch(forward, link))
                return
            client.setblocking(False)
            relay = Relay.to_guest(self._host, client)
            self._reach(
                forward,
                lambda path, relay=relay, port=peer[1]: self._connect(  # type: ignore[misc]
                    forward, relay, port, path
                ),
            )

    def _connect(self, forward: Forward, relay: Relay, port: int, path: Path | None) -> None:
        gateway = self._host.gateway
        connection = None
        if path is not None and not relay.closed:
            # The guest sees the client's own port, unless it is taken.
            connection = gateway.connect(path, port, forward.guest_port, relay)
            for _ in range(64):
                if connection is not None:
                    break
                self._next_port = self._next_port + 1 if self._next_port < 65535 else 49152
                connection = gateway.connect(path, self._next_port, forward.guest_port, relay)
        if connection is None:
            relay.lost()
        else:
            relay.connection = connection

    # ---- UDP --------------------------------------------------------------

    def _receive(self, forward: Forward, link: socket.socket) -> None:
        for _ in range(_TURNS):
            try:
                data, client = link.recvfrom(_LARGEST)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error of an answer that reached nobody.
                continue
            peer = (str(client[0]), int(client[1]))
            self._reach(
                forward,
                lambda path, data=data, peer=peer: self._deliver(  # type: ignore[misc]
                    forward, link, data, peer, path
                ),
            )

    def _deliver(
        self,
        forward: Forward,
        link: socket.socket,
        data: bytes,
        client: tuple[str, int],
        path: Path | None,
    ) -> None:
        if path is None:
            return
        flows = self._host.flows
        port = flows.port_for(path.destination, forward.guest_port, client, path.source)
        flows.incoming(link, client, (forward.guest_port, port), path)
        self._host.gateway.send(path, port, forward.guest_port, data)


def bind(forward: Forward) -> tuple[Forward, socket.socket]:
    """Return a bound socket, and the forward with its port; one for TCP listens.

    Raises InvalidValueError, ConflictError where the port is taken, HostError.
    """
    for fault in forward.faults():
        raise InvalidValueError(fault)
    six = len(addresses.parse(forward.address)) == 16
    tcp = forward.protocol == "tcp"
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    family = socket.AF_INET6 if six else socket.AF_INET
    try:
        link = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    except OSError as fault:
        raise _refusal(forward, fault) from fault
    try:
        if six:
            link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if tcp:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        link.bind((forward.address, forward.port))
        if tcp:
            link.listen(_BACKLOG)
    except OSError as fault:
        link.close()
        raise _refusal(forward, fault) from fault
    return replace(forward, port=link.getsockname()[1]), link


def _refusal(forward: Forward, fault: OSError) -> HostError | ConflictError:
    if fault.errno == errno.EADDRINUSE:
        letter = "t" if forward.protocol == "tcp" else "u"
        return ConflictError(
            f"port {forward.port} of {forward.address} is taken",
            hint=f"`ss -l{letter}np 'sport = :{forward.port}'` tells by whom; "
            "host port 0 takes any free one",
            port=forward.port,
        )
    if fault.errno in (errno.EACCES, errno.EPERM):
        return HostError(
            f"this user may not listen on port {forward.port}",
            hint="take a port from 1024 on",
            port=forward.port,
        )
    if fault.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return HostError(
            f"this host has no address {forward.address}", hint="`ip address` lists them"
        )
    hint = "`ulimit -n` allows more" if fault.errno == errno.EMFILE else None
    return HostError(f"cannot listen at {forward}: {fault.strerror}", hint=hint)
