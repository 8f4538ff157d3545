"""A learning switch (IEEE 802.1D without spanning trees): frames in, frames out, no I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from ringzero.core.frames import ETHERNET_HEADER, Frame
from ringzero.errors import ConflictError
from ringzero.net.stack.addresses import mac_text
from ringzero.net.stack.guard import Guard

# Addresses that are remembered, and how long one that is silent is, in seconds (802.1D's default).
MAX_ADDRESSES, AGEING_TIME = 4096, 300.0
# IEEE 802.1D table 7-10: groups that a bridge never passes on (pause, spanning tree, LLDP ...).
_RESERVED_GROUP = bytes.fromhex("0180c20000")


class SwitchPort:
    """One port. `emit` takes frames for what is connected; they are good only during the call.

    `guard` says what may come from it; without one it is trusted, as the gateway's. `sent` and
    `received` count frames to and from it, with their bytes; `refused` those that were forged.
    """

    __slots__ = (
        *("emit", "guard", "received", "received_bytes", "refused", "sent", "sent_bytes"),
        "switch",
    )

    def __init__(self, switch: Switch, emit: Callable[[Frame], None], guard: Guard | None) -> None:
        self.switch = switch
        self.emit = emit
        self.guard = guard
        self.sent = self.received = self.refused = 0
        self.sent_bytes = self.received_bytes = 0

    def receive(self, frame: Frame) -> None:
        """Take a frame that came from what is connected."""
        self.switch.forward(self, frame)

    def take(self, frame: Frame) -> None:
        """Give a frame to what is connected."""
        self.sent += 1
        self.sent_bytes += frame.size
        self.emit(frame)


class Switch:
    """All ports. `now` is the time in seconds, which whoever calls sets first."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ports: list[SwitchPort] = []
        # Where an address was last heard, and when; the one that is silent for longest first.
        self._heard: OrderedDict[bytes, tuple[SwitchPort, float]] = OrderedDict()
        # Addresses that are a port's for good, which nobody else takes by speaking.
        self._fixed: dict[bytes, SwitchPort] = {}

    def connect(self, emit: Callable[[Frame], None], guard: Guard | None = None) -> SwitchPort:
        """Add a port. Raises ConflictError where another one's guard has the address."""
        port = SwitchPort(self, emit, guard)
        if guard is not None:
            if guard.mac in self._fixed:
                raise ConflictError(
                    f"another port has the MAC address {mac_text(guard.mac)}",
                    hint="give one of the two machines another one, by mac=",
                )
            self._fixed[guard.mac] = port
            self._heard.pop(guard.mac, None)
        self.ports.append(port)
        return port

    def disconnect(self, port: SwitchPort) -> None:
        """Take a port away."""
        self.ports.remove(port)
        for mac in [mac for mac, (other, _) in self._heard.items() if other is port]:
            del self._heard[mac]
        if port.guard is not None:
            del self._fixed[port.guard.mac]
            port.guard.close()

    def forward(self, source: SwitchPort, frame: Frame) -> None:
        """Pass a frame on that came from a port."""
        head, guard = frame.head, source.guard
        if (
            len(head) < ETHERNET_HEADER
            or head[6] & 1
            or not (guard.allows(frame) if guard is not None else self._learn(head[6:12], source))
        ):
            source.refused += 1
            return
        source.received += 1
        source.received_bytes += frame.size
        destination = head[:6]
        if destination[0] & 1:
            if destination[:5] != _RESERVED_GROUP or destination[5] >= 16:
                self._flood(source, frame)
            return
        fixed = self._fixed.get(destination)
        known = fixed if fixed is not None else self._heard.get(destination, (None,))[0]
        if known is None:
            # Who has a guard has no other addresses.
            for port in self.ports:
                if port is not source and port.guard is None:
                    port.take(frame)
        elif known is not source:
            known.take(frame)

    def _flood(self, source: SwitchPort, frame: Frame) -> None:
        for port in self.ports:
            if port is not source:
                port.take(frame)

    def _learn(self, mac: bytes, port: SwitchPort) -> bool:
        """Note where an address is; False where it is another port's for good."""
        if mac in self._fixed:
            return False
        self._heard[mac] = port, self.now
        self._heard.move_to_end(mac)
        while self._heard:
            oldest, (_, heard) = next(iter(self._heard.items()))
            if len(self._heard) <= MAX_ADDRESSES and self.now - heard < AGEING_TIME:
                break
            del self._heard[oldest]
        return True
