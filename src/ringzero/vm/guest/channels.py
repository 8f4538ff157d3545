"""The agent's byte channels over the ports of the virtio console.

Neither side ever waits for the other's lock: a thread of its own carries the
bytes between the device, which calls under its lock, and the agent, which
calls under its own.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter

from ringzero.devices.virtio.kinds.console import ConsolePort
from ringzero.errors import StateError
from ringzero.records import record
from ringzero.vm.guest.output import PATIENCE

# Bytes from the guest that wait for the agent before the port is held.
INBOUND_LIMIT = 1 << 20
# After so many bytes at once more are likely to follow: the thread then looks again after a
# moment, in seconds, instead of being woken for each piece, which would cost a vCPU its time.
BULK, MOMENT = 16 << 10, 0.0005


@record
class OutboundState:
    """Bytes for the guest, or (where `connected` is not None) a change of the connection."""

    port: str
    data: bytes = b""
    connected: bool | None = None


@record
class ChannelsState:
    """What is on its way, in order: (port, bytes) from the guest, and what is for the guest."""

    inbound: tuple[tuple[str, bytes], ...]
    outbound: tuple[OutboundState, ...]


class PortChannels:
    """Implements `ringzero.vm.guest.protocol.Channels` over `ports`; `receive` is the agent's."""

    def __init__(
        self,
        names: Sequence[str],
        closed: Sequence[str],
        slots: Sequence[Sequence[str]] = (),
        terminals: Sequence[str] = (),
    ) -> None:
        """Make a port for each of `names`, and for each of those in `slots`, which appear later.

        The host's end of those in `closed` is shut; those in `terminals` are terminals.
        """
        self._slots = [tuple(slot) for slot in slots]
        later = [name for slot in self._slots for name in slot]
        self.ports = [
            ConsolePort(
                name,
                self._collector(name),
                connected=name not in closed,
                present=name in names,
                terminal=name in terminals,
                late=True,
            )
            for name in (*names, *later)
        ]
        self.receive: Callable[[str, bytes], None] | None = None
        # Called when the guest has taken bytes.
        self.on_sent: Callable[[], None] | None = None
        # Hears of an exception on the thread that carries, which ends with it.
        self.on_fault: Callable[[BaseException], None] | None = None
        self._by_name = {port.name: port for port in self.ports}
        self._wake = threading.Condition()
        self._signalled = False
        self._closed = False
        # Ports whose reader wants no more for now.
        self._held: set[str] = set()
        self._inbound: deque[tuple[str, bytes]] = deque()
        self._inbound_size = 0
        # Bytes to send and changes of the connection, in order, of each port that had any: most of
        # a copy's dozens never have.
        self._outbound: dict[str, deque[memoryview | bool]] = {}
        self._outbound_size = dict.fromkeys(self._by_name, 0)
        signal = self._signal
        for port in self.ports:
            port.on_room = signal
        # Held while bytes are between the two sides.
        self._carrying = threading.RLock()
        self._thread = threading.Thread(target=self._work, name="agent", daemon=True)

    def start(self) -> None:
        """Begin to carry."""
        self._thread.start()

    def close(self) -> None:
        """Stop to carry; what the guest has sent is delivered before."""
        with self._wake:
            self._closed = True
            self._signalled = True
            self._wake.notify()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            # A reader of the guest's output that does not read must not keep us.
            self._thread.join(PATIENCE)

    def send(self, port: str, data: bytes) -> None:
        with self._wake:
            # A view: what the guest takes of it in small pieces is not copied again for each.
            self._queue(port).append(memoryview(data))
            self._outbound_size[port] += len(data)
        self._signal()

    def connect(self, port: str, connected: bool) -> None:
        with self._wake:
            self._queue(port).append(connected)
        self._signal()

    def _queue(self, port: str) -> deque[memoryview | bool]:
        """Return what waits for the guest on `port`, to be added to; `_wake` is held."""
        queue = self._outbound.get(port)
        if queue is None:
            # Refuses what is no port.
            queue = self._outbound[self._by_name[port].name] = deque()
        return queue

    def backlog(self, port: str) -> int:
        """Return how many bytes for `port` the guest has not yet taken."""
        return self._outbound_size[port] + len(self._by_name[port].backlog)

    def hold(self, port: str, held: bool) -> None:
        """Stop (True) or go on (False) taking what the guest sends on `port`."""
        with self._wake:
            if held:
                self._held.add(port)
            else:
                self._held.discard(port)
        self._signal()

    def extend(self, slot: int) -> bool:
        """Have the ports of the `slot`th further slot appear; False where there are none."""
        if not 0 < slot <= len(self._slots):
            return False
        for name in self._slots[slot - 1]:
            self._by_name[name].appear()
        return True

    def resize(self, port: str, rows: int, columns: int) -> None:
        """Tell the guest the size of a terminal."""
        self._by_name[port].resize(rows, columns)

    def _signal(self) -> None:
        with self._wake:
            self._signalled = True
            self._wake.notify()

    def _collector(self, name: str) -> Callable[[bytes], None]:
        def collect(data: bytes) -> None:
            with self._wake:
                self._inbound.append((name, data))
                self._inbound_size += len(data)
                full = self._inbound_size > INBOUND_LIMIT
                self._signalled = True
                self._wake.notify()
            if full:
                self._by_name[name].hold(True)

        return collect

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._signalled:
                    self._wake.wait()
            try:
                with self._carrying:
                    carried = self._carry()
                if carried is None:
                    return
                if carried >= BULK:
                    time.sleep(MOMENT)
            except BaseException as fault:
                if self.on_fault is None:
                    raise
                self.on_fault(fault)
                return

    def _carry(self) -> int | None:
        """Carry what there is; return how many bytes the guest had sent, None for the last time."""
        with self._wake:
            self._signalled = False
            closed = self._closed
            held = set(self._held)
            inbound = list(self._inbound)
            size = self._inbound_size
            self._inbound.clear()
            self._inbound_size = 0
        for name in {name for name, _ in inbound}:
            self._by_name[name].taken()
        if self.receive is not None:
            for name, pieces in itertools.groupby(inbound, key=itemgetter(0)):
                self.receive(name, b"".join(data for _, data in pieces))
        if closed:
            return None
        sent = 0
        for port in self.ports:
            if port.held != (port.name in held):
                port.hold(not port.held)
            sent += self._push(port)
        if sent and self.on_sent is not None:
            self.on_sent()
        return size

    # ---- state ------------------------------------------------------------

    @contextmanager
    def still(self) -> Iterator[None]:
        """Carry nothing for the time of a `with` block. Raises StateError."""
        if not self._carrying.acquire(timeout=PATIENCE):
            raise StateError(
                "the output of a command in the guest is not being read",
                hint="the function that takes a command's output must not block",
            )
        try:
            yield
        finally:
            self._carrying.release()

    def save(self) -> ChannelsState:
        """Return what is on its way; within `still`."""
        with self._wake:
            outbound = tuple(
                OutboundState(name, connected=item)
                if isinstance(item, bool)
                else OutboundState(name, bytes(item))
                for name, queue in self._outbound.items()
                for item in queue
            )
            return ChannelsState(tuple(self._inbound), outbound)

    def restore(self, state: ChannelsState) -> None:
        """Put back what was on its way. Raises StateError."""
        names = {item.port for item in state.outbound} | {name for name, _ in state.inbound}
        if not names <= self._by_name.keys():
            raise StateError("the saved machine has other channels", seen=", ".join(sorted(names)))
        with self._wake:
            self._outbound.clear()
            self._outbound_size = dict.fromkeys(self._by_name, 0)
            for item in state.outbound:
                self._queue(item.port).append(
                    memoryview(item.data) if item.connected is None else item.connected
                )
                self._outbound_size[item.port] += len(item.data)
            self._held.clear()
            self._inbound = deque(state.inbound)
            self._inbound_size = sum(len(data) for _, data in state.inbound)
        self._signal()

    def _push(self, port: ConsolePort) -> int:
        """Give a port what it takes; return the bytes."""
        queue, sent = self._outbound.get(port.name), 0
        while queue:
            item = queue[0]
            if isinstance(item, bool):
                # The guest must have everything before it sees the end of file.
                if not item and port.backlog:
                    break
                port.connect_host(item)
                queue.popleft()
                continue
            taken = port.push(item)
            sent += taken
            with self._wake:
                self._outbound_size[port.name] -= taken
                if taken == len(item):
                    queue.popleft()
                else:
                    queue[0] = item[taken:]
                    break
        return sent
