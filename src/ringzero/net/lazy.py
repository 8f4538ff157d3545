"""A network that is loaded when its machine first wants something of it.

A start pays for no stack, and a command that needs no network never does. What a
guest says of itself when its interface comes up (RFC 4862, RFC 3810) asks for nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from ringzero.config.devices.net import NetConfig
from ringzero.config.ports import Forward
from ringzero.core.frames import ETHERNET_HEADER, Frame
from ringzero.errors import RingzeroError
from ringzero.host.service import ServiceThread
from ringzero.net.contract import NETWORKS, Network, Port

_BATCH = 64
_IPV6_TYPE, _IPV6_HEADER, _HOP_BY_HOP = b"\x86\xdd", 40, 0
_ICMPV6, _ADVERTISEMENT = 58, 136
_ARP, _ARP_SENDER, _ARP_TARGET = b"\x08\x06", ETHERNET_HEADER + 14, ETHERNET_HEADER + 24
_UNSPECIFIED = bytes(16)


class LazyNetwork(Network):
    """Stands for the network that `config` names; the first frame that wants it loads it."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__(config)
        self._loading = threading.Lock()
        # Held for moments: by whoever wakes, and the thread that looks at frames.
        self._waking = threading.Lock()
        self._began = self._closed = self._looking = self._woken = False
        self._real: Network | None = None
        self._kept: _KeptPort | None = None

    def wake(self) -> None:
        if self._real is not None:
            self._real.wake()
            return
        with self._waking:
            self._woken = True
            if self._looking or not self._began:
                return
            self._looking = True
        # The caller may not wait, and loading takes milliseconds.
        ServiceThread(self, self._look, "net").start()

    def start(self) -> None:
        with self._loading:
            self._began = True
            if self._real is not None:
                self._real.start()
                return
        self.port.set_link(True)

    def close(self) -> None:
        with self._loading:
            self._closed = True
            if self._real is not None:
                self._real.close()

    def leave(self) -> None:
        if self._real is not None:
            self._real.leave()

    def forward(self, forward: Forward) -> Forward:
        return self.load().forward(forward)

    def unforward(self, forward: Forward) -> None:
        self.load().unforward(forward)

    def forwards(self) -> list[Forward]:
        return self._real.forwards() if self._real is not None else []

    def connections(self) -> tuple[bytes, ...]:
        return self._real.connections() if self._real is not None else ()

    def inherit(self, connections: tuple[bytes, ...], mac: bytes) -> None:
        if connections or self._real is not None:
            self.load().inherit(connections, mac)

    def counters(self) -> dict[str, int]:
        return self._real.counters() if self._real is not None else {}

    # ---- loading ----------------------------------------------------------

    def load(self) -> Network:
        """Return the network itself; raises what making it does."""
        with self._loading:
            if self._real is None:
                network = NETWORKS.get(self.config.network)(self.config)
                network.port = kept = self._keep()
                kept.network = network
                network.on_fault = self.on_fault
                if self._began and not self._closed:
                    network.start()
                self._real = network
            return self._real

    def _keep(self) -> _KeptPort:
        with self._waking:
            if self._kept is None:
                self._kept = _KeptPort(self.port)
            return self._kept

    def _look(self) -> None:
        """Fetch frames until one wants the network; on a thread of its own."""
        kept = self._keep()
        while not kept.look():
            with self._waking:
                if not self._woken:
                    self._looking = False
                    return
                self._woken = False
        try:
            self.load().wake()
        except (RingzeroError, OSError):
            # What can be wrong with a description was found before; the host has too few sockets.
            self.port.set_link(False)


class _KeptPort:
    """A port some of whose frames were fetched before somebody wanted them."""

    def __init__(self, port: Port) -> None:
        self._port = port
        # Whose port it is; it gets the real one when what was fetched before is dealt with.
        self.network: Network | None = None
        self._first: deque[Frame] = deque()
        # One thread fetches at a time.
        self._turn = threading.Lock()
        self.deliver: Callable[[Sequence[Frame]], int] = port.deliver
        self.settle: Callable[[], None] = port.settle
        self.set_link: Callable[[bool], None] = port.set_link

    def look(self) -> bool:
        """Fetch frames and keep them from the first on that wants a network; whether one does."""
        with self._turn:
            while self._port.fetch(self._look_at, _BATCH) and not self._first:
                pass
            return bool(self._first)

    def _look_at(self, frame: Frame) -> None:
        if self._first or not asks_nothing(frame.head):
            self._first.append(frame.kept())

    def fetch(self, handle: Callable[[Frame], None], limit: int, *, coalesce: bool = False) -> bool:
        """As `Port.fetch`."""
        with self._turn:
            while self._first:
                handle(self._first.popleft())
            if self.network is not None:
                self.network.port = self._port
            return self._port.fetch(handle, limit, coalesce=coalesce)


def asks_nothing(head: bytes) -> bool:
    """Return whether a frame is one to which a network of one machine has no answer.

    Namely duplicate address detection, reports of groups, which come with it, and announcements
    (RFC 5227 section 2.3, RFC 4861 section 7.2.6).
    """
    if head[12:14] == _ARP:
        sender, target = head[_ARP_SENDER:][:4], head[_ARP_TARGET:][:4]
        return sender == target and len(target) == 4
    if head[12:14] != _IPV6_TYPE or len(head) <= ETHERNET_HEADER + _IPV6_HEADER or not head[0] & 1:
        return False
    source, following = head[ETHERNET_HEADER + 8 : ETHERNET_HEADER + 24], head[ETHERNET_HEADER + 6]
    if following == _ICMPV6:
        # Who says that it has another address, as a copy does (RFC 4861 section 7.2.6).
        return source == _UNSPECIFIED or head[ETHERNET_HEADER + _IPV6_HEADER] == _ADVERTISEMENT
    return source == _UNSPECIFIED or following == _HOP_BY_HOP
