"""virtio console with several named ports (virtio 1.2 section 5.3).

Port 0 is the guest's `hvc0`. The others appear as
/dev/virtio-ports/NAME; agents talk over them.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator

from ringzero.devices.virtio.device import VIRTIO_DEVICES, VirtioDevice
from ringzero.errors import DeviceError, StateError
from ringzero.records import record

FEATURE_SIZE, FEATURE_MULTIPORT, FEATURE_EMERGENCY_WRITE = 1, 2, 4
DEVICE_READY, PORT_ADD, PORT_READY, CONSOLE_PORT = 0, 1, 3, 4
RESIZE, PORT_OPEN, PORT_NAME = 5, 6, 7
CONTROL = struct.Struct("<IHH")  # port, event, value
CONFIG = struct.Struct("<HHII")  # columns, rows, ports, emergency write
EMERGENCY_WRITE_OFFSET = 8
CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3
QUEUE_SIZE = 128
# Bytes from the host that wait for the guest's buffers before `push` takes no more.
BACKLOG_SIZE = 256 * 1024
# The most that one request of the guest prints; Linux sends at most 64 KiB.
MAX_REQUEST = 1024 * 1024
# Control messages that wait for buffers; a guest that asks for more gives none.
MAX_PENDING_CONTROL = 1024


@record
class PortState:
    """Whether the guest knows the port, who has it open, bytes that wait for the guest.

    `present` says that the port has appeared.
    """

    ready: bool
    connected: bool
    guest_open: bool
    backlog: bytes
    present: bool


@record
class ConsoleState:
    """The terminal's size, the ports, control messages that wait for the guest's buffers."""

    columns: int
    rows: int
    ports: tuple[PortState, ...]
    control: tuple[bytes, ...]


def receive_queue(port: int) -> int:
    """Return the number of a port's receive queue; its transmit queue follows (5.3.2)."""
    return 0 if port == 0 else 2 * port + 2


class ConsolePort:
    """The host's side of one port.

    `output(data)` is called with what the guest writes, on a vCPU's thread
    and under the device's lock: it hands the bytes on and must not wait.
    `on_open(flag)` and `on_room()` tell, likewise, that the guest opened or
    closed the port, and that `push` takes bytes again. With `late`, whoever passes the output on
    calls `taken` soon after: a driver that waits for its buffers by looking has found them by
    then, and no interrupt is needed. A port that is not
    `present` is kept from the guest until `appear`; a `terminal` is one of its
    hvc terminals.
    """

    def __init__(
        self,
        name: str,
        output: Callable[[bytes], None],
        connected: bool = True,
        *,
        present: bool = True,
        terminal: bool = False,
        late: bool = False,
    ) -> None:
        self.late = late
        # Whether the driver was asked whether it waits for what was taken.
        self.told = True
        self.name = name
        self.output = output
        self.present = present
        self.terminal = terminal
        # Whether the host's end is open; the guest reads end of file where it is not.
        self.connected = connected
        self.on_open: Callable[[bool], None] | None = None
        self.on_room: Callable[[], None] | None = None
        self.index = 0
        self.guest_open = False
        self.ready = False
        self.held = False
        # The most receive buffers that the driver was seen to have offered at once.
        self.buffers = 0
        self.backlog = bytearray()
        self._device: Console

    def connect(self, device: Console, index: int) -> None:
        """Become port `index` of `device`; the device calls it."""
        self._device = device
        self.index = index

    def push(self, data: bytes | memoryview) -> int:
        """Offer bytes to the guest; return how many were taken (from any thread)."""
        device = self._device
        with device.lock:
            taken = min(len(data), BACKLOG_SIZE - len(self.backlog))
            self.backlog += data[:taken]
            device.transport.serve(receive_queue(self.index))
        return taken

    def appear(self) -> None:
        """Let the guest see the port; may be called twice."""
        device = self._device
        with device.lock:
            if not self.present:
                self.present = True
                device.announce_new(self)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the guest the size of this terminal, in characters."""
        device = self._device
        with device.lock:
            if self.ready:
                device.send_size(self.index, columns, rows)

    def connect_host(self, connected: bool) -> None:
        """Tell the guest that the host opened (True) or closed (False) its end."""
        with self._device.lock:
            if connected != self.connected:
                self.connected = connected
                if self.ready:
                    self._device.announce(self)

    def taken(self) -> None:
        """Tell a driver that still waits for it that its output was taken (of a `late` port)."""
        with self._device.lock:
            self.told = False
            self._device.transport.serve(receive_queue(self.index) + 1)

    def hold(self, held: bool) -> None:
        """Stop (True) or go on (False) taking the guest's output; it waits in its buffers."""
        device, queue = self._device, receive_queue(self.index) + 1
        with device.lock:
            self.held = held
            if held:
                device.queues[queue].reclaim()
            else:
                device.transport.serve(queue)


@VIRTIO_DEVICES.register("console")
class Console(VirtioDevice[ConsoleState]):
    """A console device with `ports`; the first is the terminal."""

    device_id = 3
    state_type = ConsoleState

    def __init__(self, ports: list[ConsolePort], columns: int = 80, rows: int = 25) -> None:
        if not ports:
            raise DeviceError("a virtio console needs a port")
        super().__init__(
            queue_sizes=(QUEUE_SIZE,) * (2 * len(ports) + 2),
            features=FEATURE_SIZE | FEATURE_MULTIPORT | FEATURE_EMERGENCY_WRITE,
        )
        self.ports = ports
        self._columns, self._rows = columns, rows
        self._control: deque[bytes] = deque()
        for index, port in enumerate(ports):
            port.connect(self, index)

    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest the size of its terminal, in characters."""
        with self.lock:
            self._columns, self._rows = columns & 0xFFFF, rows & 0xFFFF
            if not self.accepted & FEATURE_MULTIPORT:
                self.transport.interrupt_config()
            elif self.ports[0].ready:
                self.send_size(0, self._columns, self._rows)

    # ---- the transport's calls --------------------------------------------

    def config(self) -> bytes:
        return CONFIG.pack(self._columns, self._rows, len(self.ports), 0)

    def write_config(self, offset: int, width: int, value: int) -> None:
        if offset == EMERGENCY_WRITE_OFFSET:
            self.ports[0].output(bytes((value & 0xFF,)))

    def drained(self) -> Iterator[tuple[int, Callable[[], None]]]:
        # The terminal's driver waits for each piece of a line, and needs no interrupt for it.
        if self.ports[0].late:
            yield receive_queue(0) + 1, self.collect

    def activate(self) -> None:
        if not self.accepted & FEATURE_MULTIPORT:
            self.ports[0].ready = True
            self._set_open(self.ports[0], True)

    def reset(self) -> None:
        self._control.clear()
        for port in self.ports:
            port.ready = False
            port.buffers = 0
            if port.guest_open:
                self._set_open(port, False)
        self.collect()

    def pause(self) -> None:
        self.collect()

    def wants(self, index: int) -> bool:
        if index & 1:
            return not self.queues[index].is_at_rest()
        return bool(self._control if index == CONTROL_RECEIVE else self._port_of(index).backlog)

    def _port_of(self, index: int) -> ConsolePort:
        """Return the port that a queue, no control queue, is of."""
        return self.ports[0 if index < 2 else (index - 2) // 2]

    def notify(self, index: int) -> None:
        if index == CONTROL_RECEIVE:
            self._flush_control()
        elif index == CONTROL_TRANSMIT:
            self._take_control()
        else:
            port = self._port_of(index)
            if index & 1:
                self._drain(port)
            else:
                self._feed(port)

    # ---- data -------------------------------------------------------------

    def _drain(self, port: ConsolePort) -> None:
        """Pass the guest's output of one port on."""
        queue = self.queues[receive_queue(port.index) + 1]
        queue.reclaim()
        self._collect(port)
        if port.held:
            return
        for chain in queue.requests():
            left = MAX_REQUEST
            for view in chain.readable:
                port.output(bytes(view[:left]))
                left -= min(len(view), left)
            queue.push(chain, 0)
            if port.held:
                break
        if not port.late or not port.told:
            port.told = True
            self.complete(queue)
        if port.late and not port.held:
            queue.lend()

    def _collect(self, port: ConsolePort) -> None:
        """Pass on what an engine has drained of one port's queue; the lock is held."""
        drain = self.queues[receive_queue(port.index) + 1].drain
        if drain is not None and (data := drain.take()):
            port.output(data)

    def collect(self) -> None:
        """Pass on what an engine has drained."""
        with self.lock:
            self._collect(self.ports[0])

    def _feed(self, port: ConsolePort) -> None:
        """Move waiting bytes into the guest's buffers."""
        queue = self.queues[receive_queue(port.index)]
        backlog = port.backlog
        if not backlog or not queue.ready or not port.guest_open:
            return
        port.buffers = max(port.buffers, queue.waiting)
        filled = []
        while backlog:
            chain = queue.pop()
            if chain is None:
                # The driver has its buffers still to read, and offers each again when it has:
                # it notifies of half of them at once, not of each.
                if queue.rearm(max(0, port.buffers // 2 - 1)):
                    continue
                break
            count = chain.scatter(backlog[: chain.writable_size])
            filled.append((chain, count))
            del backlog[:count]
        queue.push_all(filled)
        self.complete(queue)
        if not backlog and port.on_room is not None:
            port.on_room()

    # ---- control ----------------------------------------------------------

    def _send(self, port: int, event: int, value: int, extra: bytes = b"") -> None:
        if len(self._control) < MAX_PENDING_CONTROL:
            self._control.append(CONTROL.pack(port, event, value) + extra)

    def announce(self, port: ConsolePort) -> None:
        """Tell the guest whether the host's end of `port` is open; the lock is held."""
        self._send(port.index, PORT_OPEN, int(port.connected))
        self.transport.serve(CONTROL_RECEIVE)

    def announce_new(self, port: ConsolePort) -> None:
        """Tell a guest that has asked for ports of a new one; the lock is held."""
        if any(other.ready for other in self.ports):
            self._send(port.index, PORT_ADD, 1)
            self.transport.serve(CONTROL_RECEIVE)

    def send_size(self, port: int, columns: int, rows: int) -> None:
        """Tell the guest the size of a terminal; the lock is held."""
        # Columns first (virtio 1.2, 5.3.6.2). Linux before 6.15, and stable kernels of that
        # time, read rows first.
        self._send(port, RESIZE, 0, struct.pack("<HH", columns & 0xFFFF, rows & 0xFFFF))
        self.transport.serve(CONTROL_RECEIVE)

    def _flush_control(self) -> None:
        queue = self.queues[CONTROL_RECEIVE]
        if not queue.ready:
            return
        while self._control:
            chain = queue.pop()
            if chain is None:
                if queue.rearm():
                    continue
                break
            queue.push(chain, chain.scatter(self._control.popleft()))
        self.complete(queue)

    def _take_control(self) -> None:
        queue = self.queues[CONTROL_TRANSMIT]
        for chain in queue.requests():
            message = chain.gather(CONTROL.size)
            queue.push(chain, 0)
            if len(message) == CONTROL.size:
                self._handle(*CONTROL.unpack(message))
        self.complete(queue)
        self._flush_control()

    def _handle(self, index: int, event: int, value: int) -> None:
        if event == DEVICE_READY:
            if value:
                for port in self.ports:
                    if port.present:
                        self._send(port.index, PORT_ADD, 1)
            return
        if index >= len(self.ports) or not self.ports[index].present:
            return
        port = self.ports[index]
        if event == PORT_READY and value:
            port.ready = True
            if index == 0 or port.terminal:
                self._send(index, CONSOLE_PORT, 1)
            if index == 0:
                self._send(0, RESIZE, 0, struct.pack("<HH", self._columns, self._rows))
            self._send(index, PORT_NAME, 1, port.name.encode())
            if port.connected:
                self._send(index, PORT_OPEN, 1)
        elif event == PORT_OPEN:
            self._set_open(port, bool(value))
            self._feed(port)

    def _set_open(self, port: ConsolePort, flag: bool) -> None:
        if flag != port.guest_open:
            port.guest_open = flag
            if port.on_open is not None:
                port.on_open(flag)

    # ---- state ------------------------------------------------------------

    def save(self) -> ConsoleState:
        with self.lock:
            ports = tuple(
                PortState(p.ready, p.connected, p.guest_open, bytes(p.backlog), p.present)
                for p in self.ports
            )
            return ConsoleState(self._columns, self._rows, ports, tuple(self._control))

    def restore(self, state: ConsoleState) -> None:
        if len(state.ports) != len(self.ports):
            raise StateError("virtio console: another number of ports", expected=len(self.ports))
        if any(len(port.backlog) > BACKLOG_SIZE for port in state.ports):
            raise StateError("virtio console: more bytes than a port holds")
        with self.lock:
            self._columns, self._rows = state.columns & 0xFFFF, state.rows & 0xFFFF
            self._control = deque(state.control[:MAX_PENDING_CONTROL])
            for port, saved in zip(self.ports, state.ports, strict=True):
                port.ready = saved.ready
                port.connected = saved.connected
                port.guest_open = saved.guest_open
                port.backlog[:] = saved.backlog
                port.present = saved.present
                port.told = False
