"""UDP: a socket of the host for each flow of a guest, kept while something goes over it."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from ringzero.core.frames import ETHERNET_HEADER
from ringzero.net.proxy.loop import READ, EventLoop
from ringzero.net.proxy.sockets import open_socket
from ringzero.net.stack import icmp
from ringzero.net.stack.gateway import Gateway
from ringzero.net.stack.ip import Packet, Path, key_of
from ringzero.net.stack.udp import Datagram

# Flows at once; the one that was silent for longest makes room.
MAX_FLOWS = 512
# RFC 4787 REQ-5 asks for two minutes at least.
IDLE = 120.0
# Datagrams from one socket before others have their turn.
_TURNS = 32
_LARGEST = 65535
_IP_MTU, _IPV6_MTU = 14, 24

# linux/udp.h: cut what is sent into datagrams of so many bytes (UDP_SEGMENT, since 4.18);
# UDP_MAX_SEGMENTS of then. The bytes stay below what any header needs of 64 KiB.
_UDP_SEGMENT, _PIECE = 103, struct.Struct("=H")
_MOST, _MOST_BYTES = 64, 65000
_PORTS = struct.Struct(">HH")

Key = bytes


class _Flow:
    """A guest's address and port, and one of the world's; `back` leads to the guest."""

    __slots__ = (
        *("back", "client", "datagram", "head", "heard", "key", "link", "pending", "size"),
        *("whole",),
    )

    def __init__(self, key: Key, link: socket.socket, back: Path, heard: float) -> None:
        self.key, self.link, self.back, self.heard = key, link, back, heard
        # How the last frame begins, of which an ICMP error quotes the packet.
        self.head = b""
        # Of a flow that came in by a forwarded port: whom the answers are for.
        self.client: tuple[str, int] | None = None
        # Datagrams that leave by one call, all as long as the first, but for the last; and
        # their bytes. `whole` says whether the host takes them so.
        self.pending: list[bytes] = []
        self.size = 0
        self.whole = True


class UdpFlows:
    """All flows. `target` turns an address of the guests' world into one of the host's."""

    def __init__(
        self, loop: EventLoop, gateway: Gateway, target: Callable[[bytes], str | None]
    ) -> None:
        self._loop = loop
        self._gateway = gateway
        self._target = target
        self._flows: OrderedDict[Key, _Flow] = OrderedDict()
        # Those with datagrams that are to leave.
        self._pending: list[_Flow] = []

    def __len__(self) -> int:
        return len(self._flows)

    def send(self, packet: Packet, datagram: Datagram, back: Path) -> None:
        """Pass a guest's datagram on."""
        source, destination = datagram.source_port, datagram.destination_port
        key = key_of(packet.source, source, packet.destination, destination)
        flow = self._flows.get(key)
        if flow is None:
            flow = self._open(key, packet, back)
            if flow is None:
                return
        head, data = packet.frame.head[:ETHERNET_HEADER] + packet.original(), datagram.data()
        piece = datagram.piece or len(data)
        for at in range(0, max(len(data), 1), max(piece, 1)):
            self._take(flow, head, data[at : at + piece])

    def _take(self, flow: _Flow, head: bytes, data: bytes) -> None:
        """Note a datagram, which leaves with others of its size by `flush`."""
        flow.heard, flow.head = self._loop.now, head
        pending, size = flow.pending, len(data)
        if pending and (size > len(pending[0]) or flow.size + size > _MOST_BYTES or not size):
            self._flush(flow)
        if not pending:
            self._pending.append(flow)
        pending.append(data)
        flow.size += size
        if size < len(pending[0]) or len(pending) >= _MOST or not size:
            self._flush(flow)

    def flush(self) -> None:
        """Send what was put off: at the end of each batch of frames."""
        for flow in self._pending:
            try:
                self._flush(flow)
            except Exception as fault:
                self._gateway.faults.note("a flow of UDP", fault)
                flow.pending.clear()
                self._drop(flow)
            if flow.key in self._flows:
                self._flows.move_to_end(flow.key)
        self._pending.clear()

    def _flush(self, flow: _Flow) -> None:
        pending = flow.pending
        if not pending:
            return
        if len(pending) == 1 or not self._send_whole(flow):
            for data in pending:
                self._pass_on(flow, data)
        pending.clear()
        flow.size = 0

    def _send_whole(self, flow: _Flow) -> bool:
        """Send all pending datagrams by one call, which the host cuts; False where it does not."""
        if not flow.whole:
            return False
        piece = _PIECE.pack(len(flow.pending[0]))
        cut = [(socket.IPPROTO_UDP, _UDP_SEGMENT, piece)]
        try:
            if flow.client is not None:
                flow.link.sendmsg(flow.pending, cut, 0, flow.client)
            else:
                flow.link.sendmsg(flow.pending, cut)
        except BlockingIOError:
            return False
        except OSError as fault:
            if fault.errno == errno.ECONNREFUSED:
                # What became of others, sent before.
                self._fail(flow, fault)
            else:
                # An old kernel, or a way with less room than the datagrams want.
                flow.whole = False
            return False
        return True

    def _pass_on(self, flow: _Flow, data: bytes) -> None:
        try:
            if flow.client is not None:
                flow.link.sendto(data, flow.client)
            else:
                flow.link.send(data)
        except BlockingIOError:
            pass
        except OSError as fault:
            self._fail(flow, fault)

    def _open(self, key: Key, packet: Packet, back: Path) -> _Flow | None:
        place, port = packet.destination, int.from_bytes(key[-2:], "big")
        allowed = self._gateway.may_go(place, port, "udp")
        host = self._target(place) if allowed else None
        if host is None:
            self._gateway.emit(icmp.unreachable(back, packet.original(), icmp.PROHIBITED))
            return None
        family = socket.AF_INET if len(place) == 4 else socket.AF_INET6
        link: socket.socket | None = None
        try:
            link = open_socket(family, socket.SOCK_DGRAM)
            link.connect((host, port))
        except OSError:
            if link is not None:
                link.close()
            self._gateway.emit(icmp.unreachable(back, packet.original(), icmp.NO_ROUTE))
            return None
        flow = _Flow(key, link, back, self._loop.now)
        self._loop.watch(link, READ, lambda _: self._arrived(flow))
        self._keep(flow)
        return flow

    def incoming(
        self, link: socket.socket, client: tuple[str, int], ports: tuple[int, int], back: Path
    ) -> None:
        """Note that answers of a guest go to `client` by the forwarded port.

        `back` leads to the guest; `ports` are the guest's and the gateway's.
        """
        key = key_of(back.destination, ports[0], back.source, ports[1])
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
            flow = self._flows.get(key_of(guest, guest_port, own, port))
            if flow is None or flow.client == client:
                break
            port = port + 1 if port < 65535 else 1024
        return port

    def _keep(self, flow: _Flow) -> None:
        self._flows[flow.key] = flow
        self._gateway.flows[flow.key] = partial(self._take, flow)
        while len(self._flows) > MAX_FLOWS:
            self._drop(next(iter(self._flows.values())))
        self.expire()

    def _arrived(self, flow: _Flow) -> None:
        try:
            self._receive(flow)
        except Exception as fault:
            self._gateway.faults.note("a flow of UDP", fault)
            self._drop(flow)

    def _receive(self, flow: _Flow) -> None:
        send, back = self._gateway.send, flow.back
        destination, source = _PORTS.unpack(flow.key[-4:])
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
        original = flow.head[ETHERNET_HEADER:]
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
        self._flush(flow)
        del self._flows[flow.key], self._gateway.flows[flow.key]
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
