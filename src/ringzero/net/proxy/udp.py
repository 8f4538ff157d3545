"""UDP: a socket of the host for each flow of a guest, kept while something goes over it."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import OrderedDict
from collections.abc import Callable

from ringzero.core.frames import Buffer
from ringzero.net.proxy.loop import READ, EventLoop
from ringzero.net.stack import icmp
from ringzero.net.stack.gateway import Gateway
from ringzero.net.stack.ip import Packet, Path
from ringzero.net.stack.udp import Datagram

# Flows at once; the one that was silent for longest makes room.
MAX_FLOWS = 512
# RFC 4787 REQ-5 asks for two minutes at least.
IDLE = 120.0
# Datagrams from one socket before others have their turn.
_TURNS = 32
_LARGEST = 65535
_IP_MTU, _IPV6_MTU = 14, 24

Key = tuple[bytes, int, bytes, int]


class _Flow:
    """A guest's address and port, and one of the world's; `back` leads to the guest."""

    __slots__ = ("back", "client", "datagram", "heard", "key", "link", "original")

    def __init__(self, key: Key, link: socket.socket, back: Path, heard: float) -> None:
        self.key, self.link, self.back, self.heard = key, link, back, heard
        # How the last packet begins, which an ICMP error quotes.
        self.original = b""
        # Of a flow that came in by a forwarded port: whom the answers are for.
        self.client: tuple[str, int] | None = None


class UdpFlows:
    """All flows. `target` turns an address of the guests' world into one of the host's."""

    def __init__(
        self, loop: EventLoop, gateway: Gateway, target: Callable[[bytes], str | None]
    ) -> None:
        self._loop = loop
        self._gateway = gateway
        self._target = target
        self._flows: OrderedDict[Key, _Flow] = OrderedDict()

    def __len__(self) -> int:
        return len(self._flows)

    def send(self, packet: Packet, datagram: Datagram, back: Path) -> None:
        """Pass a guest's datagram on."""
        key = packet.source, datagram.source_port, packet.destination, datagram.destination_port
        flow = self._flows.get(key)
        if flow is None:
            flow = self._open(key, packet, back)
            if flow is None:
                return
        flow.heard, flow.original = self._loop.now, packet.original()
        self._flows.move_to_end(key)
        buffers = datagram.buffers
        if datagram.piece:
            data, piece = datagram.data(), datagram.piece
            for at in range(0, len(data), piece):
                self._pass_on(flow, [data[at : at + piece]])
            return
        self._pass_on(flow, buffers)

    def _pass_on(self, flow: _Flow, buffers: list[Buffer]) -> None:
        try:
            if flow.client is not None:
                flow.link.sendto(b"".join(buffers), flow.client)
            elif len(buffers) == 1:
                flow.link.send(buffers[0])
            else:
                flow.link.sendmsg(buffers)
        except BlockingIOError:
            pass
        except OSError as fault:
            self._fail(flow, fault)

    def _open(self, key: Key, packet: Packet, back: Path) -> _Flow | None:
        allowed = self._gateway.may_go(key[2], key[3], "udp")
        host = self._target(key[2]) if allowed else None
        if host is None:
            self._gateway.emit(icmp.unreachable(back, packet.original(), icmp.PROHIBITED))
            return None
        family = socket.AF_INET if len(key[2]) == 4 else socket.AF_INET6
        link: socket.socket | None = None
        try:
            link = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            link.connect((host, key[3]))
        except OSError:
            if link is not None:
                link.close()
            self._gateway.emit(icmp.unreachable(back, packet.original(), icmp.NO_ROUTE))
            return None
        flow = _Flow(key, link, back, self._loop.now)
        self._loop.watch(link, READ, lambda _: self._receive(flow))
        self._keep(flow)
        return flow

    def incoming(self, link: socket.socket, client: tuple[str, int], key: Key, back: Path) -> None:
        """Note that answers of a guest along `key` go to `client` by the forwarded port."""
        flow = self._flows.get(key)
        if flow is None or flow.client != client:
            if flow is not None:
                self._drop(flow)
            flow = _Flow(key, link, back, self._loop.now)
            flow.client = client
            self._keep(flow)
        flow.heard = self._loop.now
        self._flows.move_to_end(key)

    def port_for(self, guest: bytes, guest_port: int, client: tuple[str, int], own: bytes) -> int:
        """Return the port of the gateway's by which a guest sees a client: its own, if free."""
        port = client[1]
        for _ in range(64):
            flow = self._flows.get((guest, guest_port, own, port))
            if flow is None or flow.client == client:
                break
            port = port + 1 if port < 65535 else 1024
        return port

    def _keep(self, flow: _Flow) -> None:
        self._flows[flow.key] = flow
        while len(self._flows) > MAX_FLOWS:
            self._drop(next(iter(self._flows.values())))
        self.expire()

    def _receive(self, flow: _Flow) -> None:
        send, back = self._gateway.send, flow.back
        source, destination = flow.key[3], flow.key[1]
        for _ in range(_TURNS):
            try:
                data = flow.link.recv(_LARGEST)
            except BlockingIOError:
                break
            except OSError as fault:
                self._fail(flow, fault)
                break
            send(back, source, destination, data)
        flow.heard = self._loop.now

    def _fail(self, flow: _Flow, fault: OSError) -> None:
        """Tell the guest what became of a datagram."""
        original = flow.original
        if not original:
            return
        if fault.errno == errno.ECONNREFUSED:
            self._gateway.emit(icmp.unreachable(flow.back, original, icmp.NO_PORT))
        elif fault.errno == errno.EMSGSIZE:
            six = flow.link.family == socket.AF_INET6
            level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
            with contextlib.suppress(OSError):
                mtu = flow.link.getsockopt(level, _IPV6_MTU if six else _IP_MTU)
                self._gateway.emit(icmp.too_big(flow.back, original, min(mtu, 65535)))
        elif fault.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            self._gateway.emit(icmp.unreachable(flow.back, original, icmp.NO_HOST))

    def _drop(self, flow: _Flow) -> None:
        del self._flows[flow.key]
        if flow.client is None:
            self._loop.forget(flow.link)
            flow.link.close()

    def expire(self) -> None:
        """Give up the flows that were silent for long."""
        while self._flows:
            flow = next(iter(self._flows.values()))
            if self._loop.now - flow.heard < IDLE:
                break
            self._drop(flow)

    def forget_link(self, link: socket.socket) -> None:
        """Drop the flows of a forwarded port that is closed."""
        for flow in [flow for flow in self._flows.values() if flow.link is link]:
            self._drop(flow)

    def close(self) -> None:
        """Give all sockets back."""
        for flow in list(self._flows.values()):
            self._drop(flow)
