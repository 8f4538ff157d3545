"""ICMP echo by the host's unprivileged sockets (icmp(7), sysctl net.ipv4.ping_group_range)."""

from __future__ import annotations

import socket
from collections import OrderedDict

from ringzero.net.proxy.loop import READ, EventLoop
from ringzero.net.proxy.sockets import open_socket
from ringzero.net.stack import icmp
from ringzero.net.stack.gateway import Gateway
from ringzero.net.stack.ip import Packet, Path

# Guests' pings at once, and how long one waits for answers, in seconds.
MAX_FLOWS, IDLE = 64, 30.0
_LARGEST = 65535
Key = tuple[bytes, bytes, bytes]


class _Flow:
    """One guest's ping of one address; the host gives it an identifier of its own."""

    __slots__ = ("back", "heard", "identifier", "link")

    def __init__(self, link: socket.socket, back: Path, identifier: bytes, heard: float) -> None:
        self.link, self.back, self.identifier, self.heard = link, back, identifier, heard


class Echoes:
    """All pings."""

    def __init__(self, loop: EventLoop, gateway: Gateway) -> None:
        self._loop = loop
        self._gateway = gateway
        self._flows: OrderedDict[Key, _Flow] = OrderedDict()

    def send(self, packet: Packet, back: Path, host: str) -> None:
        """Pass an echo request on to `host`; an error where this host may not."""
        data = packet.data()
        identifier = data[4:6]
        key = packet.source, packet.destination, identifier
        flow = self._flows.get(key)
        if flow is None:
            flow = self._open(key, back, host)
            if flow is None:
                self._gateway.emit(icmp.unreachable(back, packet.original(), icmp.PROHIBITED))
                return
        flow.heard = self._loop.now
        self._flows.move_to_end(key)
        # The kernel puts checksum and identifier in.
        kind = icmp.ECHO if len(packet.source) == 4 else icmp.ECHO6
        try:
            flow.link.send(bytes((kind, 0, 0, 0)) + data[4:])
        except BlockingIOError:
            pass
        except OSError:
            self._gateway.emit(icmp.unreachable(back, packet.original(), icmp.NO_HOST))

    def _open(self, key: Key, back: Path, host: str) -> _Flow | None:
        four = len(key[0]) == 4
        protocol = socket.IPPROTO_ICMP if four else socket.IPPROTO_ICMPV6
        link: socket.socket | None = None
        try:
            family = socket.AF_INET if four else socket.AF_INET6
            link = open_socket(family, socket.SOCK_DGRAM, protocol)
            link.connect((host, 0))
        except OSError:
            if link is not None:
                link.close()
            return None
        flow = self._flows[key] = _Flow(link, back, key[2], self._loop.now)
        self._loop.watch(link, READ, lambda _: self._receive(flow))
        while len(self._flows) > MAX_FLOWS:
            self._drop(next(iter(self._flows)))
        return flow

    def _receive(self, flow: _Flow) -> None:
        try:
            data = flow.link.recv(_LARGEST)
        except OSError:
            return
        if len(data) >= 8 and data[0] in (icmp.ECHO_REPLY, icmp.ECHO_REPLY6):
            self._gateway.echo_reply(flow.back, flow.identifier + data[6:])

    def _drop(self, key: Key) -> None:
        flow = self._flows.pop(key)
        self._loop.forget(flow.link)
        flow.link.close()

    def expire(self) -> None:
        """Give up what nothing was heard of for long."""
        while self._flows:
            key, flow = next(iter(self._flows.items()))
            if self._loop.now - flow.heard < IDLE:
                break
            self._drop(key)

    def close(self) -> None:
        """Give all sockets back."""
        for key in list(self._flows):
            self._drop(key)
