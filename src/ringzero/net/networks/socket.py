"""A cable: frames over a Unix stream socket, to another machine, or to a switch of the user's.

Each frame goes behind its length, 4 bytes, the highest first: as QEMU's
`-netdev stream`, passt and others have it. One side listens, the other
connects, and tries again while nobody is there. The listener has one peer at
a time.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections import deque
from pathlib import Path

from ringzero.config.devices.net import NetConfig
from ringzero.core.frames import Frame, plain
from ringzero.errors import ConfigError, HostError
from ringzero.host.service import ServiceThread
from ringzero.host.unixsocket import Listener, connect
from ringzero.net.contract import NETWORKS, Network

LENGTH = struct.Struct(">I")
# The longest frame that a peer may send: what QEMU takes.
MAX_FRAME = 4096 + 65536
# Bytes for a peer that does not read before frames are dropped.
OUTBOX_SIZE = 1 << 20
_READ = 256 * 1024
# How long until the next try to connect, in seconds, at first and at most.
_FIRST_TRY, _LAST_TRY = 0.02, 1.0
# How long a connection must last, in seconds, or bring a frame, before it is a link: a listener
# that has a peer ends others as soon as it sees them.
_PROBATION = 0.05
_PATIENCE = 2.0
# Frames of the machine's that are fetched at once.
_BATCH = 64


class Decoder:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that `data` completes; raises ValueError for an impossible length."""
        self._data += data
        frames, at = [], 0
        while len(self._data) - at >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._data, at)
            if not 0 < length <= MAX_FRAME:
                raise ValueError(f"a frame of {length} bytes")
            end = at + LENGTH.size + length
            if end > len(self._data):
                break
            frames.append(bytes(self._data[at + LENGTH.size : end]))
            at = end
        del self._data[:at]
        return frames


@NETWORKS.register("socket")
class SocketNetwork(Network):
    """The end of a cable at the socket `config.target`. `dropped` counts frames without room."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__(config)
        self._path = self._place(config)
        self._listener = Listener(self._path, backlog=4) if config.listen else None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.epoll()
        self._poll.register(self._wake, select.EPOLLIN)
        if self._listener is not None:
            self._poll.register(self._listener.socket, select.EPOLLIN)
        # Guards the peer and what is on its way to it.
        self._lock = threading.Lock()
        self._peer: socket.socket | None = None
        self._outbox = bytearray()
        self.dropped = 0
        # The thread's own.
        self._decoder = Decoder()
        self._frames: deque[Frame] = deque()
        self._interest = 0
        self._next_try, self._delay = 0.0, _FIRST_TRY
        self._linked, self._links_at = False, 0.0
        self._closing = False
        self._thread = ServiceThread(self, self._work, "net")

    def _place(self, config: NetConfig) -> Path:
        """Return where the socket is."""
        if not config.target:
            raise ConfigError(["a network over a socket without a path"], hint="socket=PATH")
        return Path(config.target)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        if self._thread.ident:
            os.eventfd_write(self._wake, 1)
            self._thread.join(_PATIENCE)
        if self._listener is not None:
            self._listener.close()
        if self._peer is not None:
            self._peer.close()
        self._poll.close()
        os.close(self._wake)

    def leave(self) -> None:
        if self._listener is not None:
            self._listener.socket.close()
        if self._peer is not None:
            self._peer.close()
        self._poll.close()
        os.close(self._wake)

    # ---- the interface's calls --------------------------------------------

    def counters(self) -> dict[str, int]:
        return {"dropped": self.dropped}

    def wake(self) -> None:
        # On the vCPU's thread: the socket takes what there is, or it is dropped.
        while self.port.fetch(self._send, _BATCH):
            pass
        if self._frames:
            self._signal()

    def _send(self, frame: Frame) -> None:
        for data in plain(frame):
            self._send_plain(data)

    def _send_plain(self, data: bytes) -> None:
        with self._lock:
            if self._peer is None or len(self._outbox) + len(data) > OUTBOX_SIZE:
                self.dropped += 1
                return
            waiting = bool(self._outbox)
            self._outbox += LENGTH.pack(len(data)) + data
            if not waiting:
                self._flush(self._peer)
            if self._outbox and not waiting:
                self._signal()

    def _signal(self) -> None:
        if not self._closing:
            os.eventfd_write(self._wake, 1)

    def _flush(self, peer: socket.socket) -> None:
        """Send what waits, as far as it goes; the lock is held."""
        try:
            del self._outbox[: peer.send(self._outbox)]
        except BlockingIOError:
            pass
        except OSError:
            # The thread sees the end of the connection for itself.
            self._outbox.clear()

    # ---- the thread -------------------------------------------------------

    def _work(self) -> None:
        while not self._closing:
            self._seek()
            for descriptor, events in self._poll.poll(self._patience()):
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                elif self._peer is not None and descriptor == self._peer.fileno():
                    self._serve(self._peer, events)
                elif self._listener is not None:
                    self._accept(self._listener)
            self._prove()
            self._deliver()
            self._watch()

    def _patience(self) -> float | None:
        """Return how long to wait for events, in seconds; None for ever."""
        if self._linked or (self._peer is None and self._listener is not None):
            return None
        moment = self._next_try if self._peer is None else self._links_at
        return max(0.0, moment - time.monotonic())

    def _seek(self) -> None:
        """Connect, where that is ours to do, and it is time to try."""
        if self._peer is not None or self._listener is not None:
            return
        if time.monotonic() < self._next_try:
            return
        try:
            self._begin(self._connect(), _PROBATION)
        except HostError:
            self._next_try = time.monotonic() + self._delay
            self._delay = min(2 * self._delay, _LAST_TRY)

    def _connect(self) -> socket.socket:
        """Return a connection to the other end. Raises HostError."""
        return connect(self._path)

    def _accept(self, listener: Listener) -> None:
        try:
            link, _ = listener.socket.accept()
        except OSError:
            return
        if self._peer is not None:
            link.close()
        else:
            link.setblocking(False)
            self._begin(link, 0.0)

    def _begin(self, link: socket.socket, probation: float) -> None:
        self._decoder = Decoder()
        self._links_at = time.monotonic() + probation
        self._interest = select.EPOLLIN
        self._poll.register(link, self._interest)
        with self._lock:
            self._peer = link

    def _prove(self) -> None:
        """Take the connection for a link, if it is one by now."""
        if self._peer is None or self._linked:
            return
        if self._frames or time.monotonic() >= self._links_at:
            self._linked, self._delay = True, _FIRST_TRY
            self.port.set_link(True)

    def _end(self) -> None:
        with self._lock:
            link, self._peer = self._peer, None
            self._outbox.clear()
        if link is not None:
            self._poll.unregister(link)
            link.close()
        self._next_try = time.monotonic() + self._delay
        self._delay = min(2 * self._delay, _LAST_TRY)
        self._linked = False
        self.port.set_link(False)

    def _serve(self, peer: socket.socket, events: int) -> None:
        if events & select.EPOLLOUT:
            with self._lock:
                self._flush(peer)
        if not events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        try:
            data = peer.recv(_READ)
            if data:
                self._frames.extend(map(Frame, self._decoder.feed(data)))
                return
        except BlockingIOError:
            return
        except (OSError, ValueError):
            pass
        self._end()

    def _deliver(self) -> None:
        if self._frames:
            for _ in range(self.port.deliver(self._frames)):
                self._frames.popleft()

    def _watch(self) -> None:
        """Read while the machine takes frames, and hear of room while frames wait."""
        if self._peer is None:
            return
        interest = (0 if self._frames else select.EPOLLIN) | (
            select.EPOLLOUT if self._outbox else 0
        )
        if interest != self._interest:
            self._poll.modify(self._peer, interest)
            self._interest = interest
