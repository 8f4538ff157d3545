"""I/O APIC with 24 pins (Intel 82093AA data sheet; version 0x20 with an EOI register)."""

from __future__ import annotations

import threading

from ringzero.core.irq import IrqLine, SharedStatus
from ringzero.devices.contract import DEVICES, Device
from ringzero.devices.interrupts.lapic import EXTINT, FIXED, LOWEST, NMI, InterruptBus
from ringzero.errors import StateError
from ringzero.records import record

IOAPIC_SIZE = 0x1000
PINS = 24
SELECT, WINDOW, EOI_REGISTER = 0x00, 0x10, 0x40
REGISTER_ID, REGISTER_VERSION, REGISTER_ARBITRATION, FIRST_REDIRECTION = 0, 1, 2, 0x10
VERSION = 0x20 | (PINS - 1) << 16
LOGICAL, ACTIVE_LOW, REMOTE_IRR, LEVEL, MASKED = 1 << 11, 1 << 13, 1 << 14, 1 << 15, 1 << 16
# Delivery status is always idle here, because messages arrive at once.
WRITABLE_LOW = 0x1_AFFF
WRITABLE_HIGH = 0xFF00_0000
MASK_32 = 0xFFFF_FFFF


@record
class IoapicState:
    """Index register, identity, redirection table, pin levels and edges held back by a mask."""

    select: int
    identity: int
    table: tuple[int, ...]
    levels: int
    edges: int


@DEVICES.register("ioapic")
class Ioapic(Device[IoapicState]):
    """`line(pin)` gives the wire into a pin; messages go out over `bus`.

    An edge that comes while its pin is masked is kept and sent at the unmask,
    so that a driver that starts late finds it.
    """

    state_type = IoapicState

    def __init__(self, bus: InterruptBus, identity: int = 0) -> None:
        self._bus = bus
        self._identity = identity
        self._first_identity = identity
        self._lock = threading.RLock()
        self._levels = 0
        self._lines: list[list[IrqLine]] = [[] for _ in range(PINS)]
        bus.eoi_listeners.append(self)
        self.reset()

    def reset(self) -> None:
        """Mask everything; the pins keep the level at which devices drive them."""
        with self._lock:
            for pin in range(PINS):
                self._unroute(pin)
            self._select = 0
            self._identity = self._first_identity
            self._table = [MASKED] * PINS
            self._edges = 0

    def line(self, pin: int) -> IrqLine:
        """Return the wire into `pin`, 0-23."""
        if not 0 <= pin < PINS:
            raise ValueError(f"an I/O APIC has no pin {pin}")

        def sink(level: bool) -> None:
            self.set_level(pin, level)

        line = IrqLine(sink)
        self._lines[pin].append(line)
        return line

    def set_level(self, pin: int, level: bool) -> None:
        """Drive `pin`; from any thread."""
        bit = 1 << pin
        with self._lock:
            was = self._levels & bit
            if level:
                self._levels |= bit
                if not was:
                    self._edges |= bit
                self._service(pin)
            else:
                self._levels &= ~bit

    def _source(self, pin: int) -> SharedStatus | None:
        """Return what drives the pin alone, if an engine holds that."""
        lines = self._lines[pin]
        return lines[0].source if len(lines) == 1 else None

    def _unroute(self, pin: int) -> None:
        """Have the pin's source send nothing by itself; the lock is held."""
        source = self._source(pin)
        if source is not None:
            source.route(0, 0)

    def _look(self, pin: int) -> None:
        """Take the pin's level from its source, which others lower; the lock is held."""
        source = self._source(pin)
        if source is not None:
            bit = 1 << pin
            self._levels = self._levels | bit if source.value else self._levels & ~bit

    def _service(self, pin: int) -> None:
        """Send what the pin has to send; the lock is held."""
        entry = self._table[pin]
        if entry & MASKED:
            return
        bit = 1 << pin
        level = bool(entry & LEVEL)
        if level:
            self._look(pin)
            if entry & REMOTE_IRR or not self._levels & bit:
                return
        elif not self._edges & bit:
            return
        self._edges &= ~bit
        mode = entry >> 8 & 7
        if mode not in (FIXED, LOWEST, NMI, EXTINT):
            return
        mode = FIXED if mode == EXTINT else mode
        sent = self._bus.deliver(entry >> 56, bool(entry & LOGICAL), mode, entry & 0xFF, level)
        if level:
            if sent:
                self._table[pin] |= REMOTE_IRR
        elif mode in (FIXED, LOWEST):
            source = self._source(pin)
            if source is not None:
                self._bus.route(entry >> 56, bool(entry & LOGICAL), entry & 0xFF, source)

    def end_of_interrupt(self, vector: int) -> None:
        """Take the EOI message of a local APIC for a level-triggered `vector`."""
        with self._lock:
            for pin, entry in enumerate(self._table):
                if entry & 0xFF == vector and entry & REMOTE_IRR:
                    self._table[pin] = entry & ~REMOTE_IRR
                    self._service(pin)

    def read(self, offset: int, width: int) -> int:
        with self._lock:
            if offset == SELECT:
                return self._select
            if offset != WINDOW:
                return 0
            select = self._select
            if select == REGISTER_VERSION:
                return VERSION
            if select in (REGISTER_ID, REGISTER_ARBITRATION):
                return self._identity << 24
            pin = (select - FIRST_REDIRECTION) >> 1
            if 0 <= pin < PINS:
                return self._table[pin] >> 32 * (select & 1) & MASK_32
            return 0

    def write(self, offset: int, width: int, value: int) -> None:
        value &= MASK_32
        with self._lock:
            if offset == SELECT:
                self._select = value & 0xFF
            elif offset == EOI_REGISTER:
                self.end_of_interrupt(value & 0xFF)
            elif offset == WINDOW:
                self._write_register(self._select, value)

    def _write_register(self, select: int, value: int) -> None:
        if select == REGISTER_ID:
            self._identity = value >> 24 & 0xF
            return
        pin = (select - FIRST_REDIRECTION) >> 1
        if not 0 <= pin < PINS:
            return
        self._unroute(pin)
        entry = self._table[pin]
        if select & 1:
            self._table[pin] = entry & MASK_32 | (value & WRITABLE_HIGH) << 32
        else:
            kept = entry & (MASK_32 << 32 | REMOTE_IRR)
            entry = kept | value & WRITABLE_LOW
            # An edge entry has no remote IRR: switching to edge and back clears it.
            self._table[pin] = entry if entry & LEVEL else entry & ~REMOTE_IRR
            self._service(pin)

    def save(self) -> IoapicState:
        with self._lock:
            for pin in range(PINS):
                self._look(pin)
            return IoapicState(
                self._select, self._identity, tuple(self._table), self._levels, self._edges
            )

    def restore(self, state: IoapicState) -> None:
        if len(state.table) != PINS:
            raise StateError("ioapic: another number of pins", expected=PINS, seen=len(state.table))
        with self._lock:
            for pin in range(PINS):
                self._unroute(pin)
            self._select = state.select & 0xFF
            self._identity = state.identity & 0xF
            self._table = [
                entry & (WRITABLE_HIGH << 32 | WRITABLE_LOW | REMOTE_IRR) for entry in state.table
            ]
            self._levels = state.levels & ((1 << PINS) - 1)
            self._edges = state.edges & ((1 << PINS) - 1)
