"""16550A serial port with FIFOs (National Semiconductor PC16550D data sheet).

The transmitter is infinitely fast: a byte is out as soon as it is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from ringzero.core.bus import Show
from ringzero.core.irq import IrqLine
from ringzero.devices.contract import DEVICES, ByteDevice
from ringzero.errors import StateError
from ringzero.records import record

FIFO_SIZE = 16
# Bytes from the host that wait for room in the FIFO before `push` takes no more.
BACKLOG_SIZE = 4096

# Registers by their offsets: the transmitter, interrupt enable; interrupt identification, line and
# modem status.
TRANSMIT, INTERRUPT_ENABLE, IDENTIFICATION, LINE_STATUS, MODEM_STATUS = 0, 1, 2, 5, 6
STATUS = (IDENTIFICATION, LINE_STATUS, MODEM_STATUS)
IER_RECEIVED, IER_TRANSMIT, IER_LINE, IER_MODEM = 1, 2, 4, 8
IIR_NONE, IIR_TRANSMIT, IIR_RECEIVED, IIR_LINE, IIR_TIMEOUT, IIR_MODEM = 1, 2, 4, 6, 0xC, 0
IIR_FIFO_ENABLED = 0xC0
FCR_ENABLE, FCR_CLEAR_RECEIVE, FCR_TRIGGER = 1, 2, 0xC0
LCR_DIVISOR_LATCH, LCR_BREAK = 0x80, 0x40
LSR_DATA, LSR_OVERRUN, LSR_BREAK, LSR_EMPTY = 1, 2, 0x10, 0x60
MCR_OUT2, MCR_LOOP = 8, 0x10
# Carrier, data set ready, clear to send: a terminal is there and switched on.
MSR_CONNECTED = 0xB0
TRIGGER_LEVELS = {0x00: 1, 0x40: 4, 0x80: 8, 0xC0: 14}


@record
class SerialState:
    """Registers, the receive FIFO and the host's bytes behind it."""

    interrupt_enable: int
    fifo_control: int
    line_control: int
    modem_control: int
    line_errors: int
    modem_delta: int
    scratch: int
    divisor: int
    transmit_pending: bool
    received: bytes
    backlog: bytes


@DEVICES.register("serial")
class Serial(ByteDevice[SerialState]):
    """One port of eight byte registers.

    `output(data)` takes what the guest sends; `push(data)` is the way in.
    """

    state_type = SerialState

    def __init__(self, irq: IrqLine, output: Callable[[bytes], None]) -> None:
        self._irq = irq
        self._output = output
        self._lock = threading.Lock()
        self._backlog = bytearray()
        self._paused = False
        # Called (from a vCPU thread) when `push` takes bytes again.
        self.on_room: Callable[[], None] | None = None
        # Who answers reads of the status registers; who is told which interrupts are enabled.
        self._shadows: dict[int, Show] = {}
        self._shown: dict[int, int | None] = dict.fromkeys(STATUS)
        # Whether the guest did something a while ago of which the interrupt does not know yet.
        self._late = False
        self._hold: Callable[[int], None] = lambda _: None
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self._ier = self._fcr = self._lcr = self._scratch = 0
            self._mcr = MCR_OUT2
            self._errors = self._modem_delta = 0
            self._divisor = 12  # 9600 baud from 1.8432 MHz
            self._transmit_pending = False
            self._received = bytearray()
            self._backlog.clear()
            self._show_enabled()
            self._update()

    def shadow(self, offset: int, show: Show) -> None:
        """Have `show` told what reading a status register gives, None while that has effects."""
        with self._lock:
            self._shadows[offset] = show
            self._shown[offset] = None
            self._update()

    def hold_enabled(self, hold: Callable[[int], None]) -> None:
        """Have `hold` told of the interrupts that the guest has enabled; it turns some off."""
        with self._lock:
            self._hold = hold
            self._show_enabled()

    def _show_enabled(self) -> None:
        # The divisor's latch is another register at the same place.
        self._hold(0 if self._lcr & LCR_DIVISOR_LATCH else self._ier)

    def _show(self, now: int, quiet: int) -> None:
        """Show the status; `now` and `quiet` are the identification with the transmitter's."""
        # In loopback what is transmitted comes back, and an engine may keep it for a while.
        known = not self._mcr & MCR_LOOP
        line = LSR_EMPTY | bool(self._received) * LSR_DATA if known and not self._errors else None
        modem = MSR_CONNECTED if known and not self._modem_delta else None
        for offset, value in ((LINE_STATUS, line), (MODEM_STATUS, modem)):
            if offset in self._shadows and value != self._shown[offset]:
                self._shown[offset] = value
                self._shadows[offset](value)
        show = self._shadows.get(IDENTIFICATION)
        if show is None:
            return
        # What was shown before may have become something else by the guest's accesses.
        if not known or self._lcr & LCR_DIVISOR_LATCH:
            show(None)
            return
        bits = self._fifo_bits
        # A transmitter whose interrupt is on has one as soon as it is told of its bytes.
        waits = now == IIR_NONE and self._ier & IER_TRANSMIT
        show(None if waits else now | bits, quiet | bits, once=now == IIR_TRANSMIT)

    def push(self, data: bytes) -> int:
        """Offer bytes to the guest's receiver; return how many were taken."""
        with self._lock:
            taken = min(len(data), BACKLOG_SIZE - len(self._backlog))
            self._backlog += data[:taken]
            if not self._paused:
                self._refill()
                self._update()
        return taken

    def pause(self) -> None:
        """Keep what is pushed from the receiver, so that its interrupt does not change.

        One that the guest has seen fall has fallen then: the interrupt controller, saved with it
        raised, would take the next one for the same.
        """
        with self._lock:
            self._paused = True
            if self._late:
                self._update()

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            self._refill()
            self._update()

    def _refill(self) -> None:
        if self._mcr & MCR_LOOP:
            return
        room = (FIFO_SIZE if self._fcr & FCR_ENABLE else 1) - len(self._received)
        if room > 0 and self._backlog:
            self._received += self._backlog[:room]
            del self._backlog[:room]

    def _identification(self) -> int:
        """Return the interrupt-identification register without its FIFO bits."""
        quiet = self._quiet_identification()
        # The receiver's come first, the modem's last.
        if quiet in (IIR_NONE, IIR_MODEM) and self._ier & IER_TRANSMIT and self._transmit_pending:
            return IIR_TRANSMIT
        return quiet

    def _quiet_identification(self) -> int:
        """Return what that would be if the transmitter wanted nothing."""
        if self._ier & IER_LINE and self._errors:
            return IIR_LINE
        if self._ier & IER_RECEIVED and self._received:
            if len(self._received) >= TRIGGER_LEVELS[self._fcr & FCR_TRIGGER]:
                return IIR_RECEIVED
            # Fewer bytes than the trigger level: no more come soon, so time out at once.
            return IIR_TIMEOUT if self._fcr & FCR_ENABLE else IIR_RECEIVED
        return IIR_MODEM if self._ier & IER_MODEM and self._modem_delta else IIR_NONE

    @property
    def _fifo_bits(self) -> int:
        return IIR_FIFO_ENABLED if self._fcr & FCR_ENABLE else 0

    def _update(self) -> None:
        if self._late:
            # What has come since finds the interrupt raised: the guest has seen it fall.
            self._late = False
            self._irq.set(False)
        now = self._identification()
        # Before the interrupt: a guest that comes for it at once, and finds no reason, goes again.
        if self._shadows:
            self._show(now, self._quiet_identification())
        # OUT2 gates the interrupt pin on every PC board.
        self._irq.set(bool(self._mcr & MCR_OUT2) and now != IIR_NONE)

    def read_byte(self, offset: int) -> int:
        room = None
        with self._lock:
            value = self._read(offset)
            if offset == 0 and not self._backlog:
                room = self.on_room
        if room is not None:
            room()
        return value

    def _read(self, offset: int) -> int:
        match offset:
            case 5:
                value = LSR_EMPTY | self._errors | (LSR_DATA if self._received else 0)
                if self._errors:
                    self._errors = 0
                    self._update()
                return value
            case 0 | 1 if self._lcr & LCR_DIVISOR_LATCH:
                return self._divisor >> 8 * offset & 0xFF
            case 0:
                value = self._received.pop(0) if self._received else 0
                self._refill()
                self._update()
                return value
            case 1:
                return self._ier
            case 2:
                value = self._identification()
                if value == IIR_TRANSMIT:
                    self._transmit_pending = False
                    self._update()
                return value | self._fifo_bits
            case 3:
                return self._lcr
            case 4:
                return self._mcr
            case 6:
                value = self._modem_status() | self._modem_delta
                self._modem_delta = 0
                self._update()
                return value
            case 7:
                return self._scratch
        return 0xFF

    def _modem_status(self) -> int:
        if not self._mcr & MCR_LOOP:
            return MSR_CONNECTED
        # Loopback: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
        mcr = self._mcr
        return (mcr & 2) << 3 | (mcr & 1) << 5 | (mcr & 4) << 4 | (mcr & 8) << 4

    def write_byte(self, offset: int, value: int) -> None:
        if offset == TRANSMIT and self._transmits:
            self._transmit(bytes((value,)))
            self.settle()
            return
        with self._lock:
            self._write(offset, value)
            self._show_enabled()
            self._update()

    def write_all(self, offset: int, width: int, values: Sequence[int]) -> None:
        """Take what was written to one register, value after value.

        `settle` follows where that was the transmitter.
        """
        if width != 1:
            for value in values:
                self.write(offset, width, value)
        elif offset == TRANSMIT and self._transmits:
            self._transmit(bytes([value & 0xFF for value in values]))
        else:
            with self._lock:
                for value in values:
                    self._write(offset, value & 0xFF)
                self._late = True

    def identified(self) -> None:
        """Hear that the guest has read from a shadow that the transmitter is empty."""
        with self._lock:
            self._transmit_pending = False
            self._late = True

    @property
    def _transmits(self) -> bool:
        """Whether the first register is the transmitter, and the line its end."""
        return not self._lcr & LCR_DIVISOR_LATCH and not self._mcr & MCR_LOOP

    def _transmit(self, data: bytes) -> None:
        self._output(data)
        if self._ier & IER_TRANSMIT:
            with self._lock:
                self._transmit_pending = True
                self._late = True

    def settle(self) -> None:
        """Change the interrupt as what the guest did a while ago has it.

        A driver that has no more to send has turned the transmitter's off by then.
        """
        if self._late:
            with self._lock:
                self._update()

    def _write(self, offset: int, value: int) -> None:
        match offset:
            case 0 | 1 if self._lcr & LCR_DIVISOR_LATCH:
                shift = 8 * offset
                self._divisor = self._divisor & ~(0xFF << shift) | value << shift
            case 0:
                if len(self._received) < FIFO_SIZE:
                    self._received.append(value)
                else:
                    self._errors |= LSR_OVERRUN
                self._transmit_pending = True
            case 1:
                if value & IER_TRANSMIT and not self._ier & IER_TRANSMIT:
                    self._transmit_pending = True
                self._ier = value & 0x0F
            case 2:
                if value & FCR_CLEAR_RECEIVE or (value ^ self._fcr) & FCR_ENABLE:
                    self._received.clear()
                self._fcr = value & (FCR_TRIGGER | FCR_ENABLE) if value & FCR_ENABLE else 0
                self._refill()
            case 3:
                self._lcr = value
            case 4:
                before = self._modem_status()
                self._mcr = value & 0x1F
                changed = before ^ self._modem_status()
                # DCTS, DDSR and DDCD on any change, TERI when RI falls.
                self._modem_delta |= changed >> 4 & 0x0B | (changed & before) >> 4 & 0x04
                self._refill()
            case 7:
                self._scratch = value

    def save(self) -> SerialState:
        with self._lock:
            return SerialState(
                self._ier,
                self._fcr,
                self._lcr,
                self._mcr,
                self._errors,
                self._modem_delta,
                self._scratch,
                self._divisor,
                self._transmit_pending,
                bytes(self._received),
                bytes(self._backlog),
            )

    def restore(self, state: SerialState) -> None:
        if len(state.received) > FIFO_SIZE or len(state.backlog) > BACKLOG_SIZE:
            raise StateError("serial: more received bytes than the FIFO holds")
        with self._lock:
            self._ier = state.interrupt_enable & 0x0F
            self._fcr = state.fifo_control & (FCR_TRIGGER | FCR_ENABLE)
            self._lcr = state.line_control & 0xFF
            self._mcr = state.modem_control & 0x1F
            self._errors = state.line_errors & (LSR_OVERRUN | LSR_BREAK)
            self._modem_delta = state.modem_delta & 0x0F
            self._scratch = state.scratch & 0xFF
            self._divisor = state.divisor & 0xFFFF
            self._transmit_pending = state.transmit_pending
            self._received = bytearray(state.received)
            self._backlog[:] = state.backlog
            self._show_enabled()
            self._update()
