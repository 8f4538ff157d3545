"""Local APIC: xAPIC and x2APIC (Intel SDM vol. 3A chapter 11), and the bus between them.

The timer counts in guest TSC values: `deadline` is the TSC value at which it
fires, and the engine calls `expire` then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableSequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from ringzero.core.irq import SharedStatus
from ringzero.devices.contract import DEVICES, Device
from ringzero.errors import StateError
from ringzero.records import record

APIC_BASE_ADDRESS = 0xFEE0_0000
APIC_SIZE = 0x1000
MSR_APIC_BASE = 0x1B
MSR_TSC_DEADLINE = 0x6E0
MSR_X2APIC_FIRST, MSR_X2APIC_LAST = 0x800, 0x83F
# KVM's paravirtual end of interrupt (Linux Documentation/virt/kvm/x86/msr.rst): bit 0 and the
# guest-physical address, a multiple of 4, of a flag by which the guest ends an interrupt.
MSR_EOI_FLAG = 0x4B56_4D04
EOI_FLAG_ENABLE, EOI_FLAG_ALIGNMENT = 1, 4
MSRS = (
    MSR_APIC_BASE,
    MSR_TSC_DEADLINE,
    *range(MSR_X2APIC_FIRST, MSR_X2APIC_LAST + 1),
    MSR_EOI_FLAG,
)

BASE_BSP, BASE_X2APIC, BASE_ENABLE = 1 << 8, 1 << 10, 1 << 11
# Version 0x14 (integrated APIC), highest LVT entry 5: what KVM shows.
VERSION = 0x0005_0014
SVR_ENABLE = 1 << 8
LVT_MASKED = 1 << 16
# Registers by the index that is both MMIO offset / 16 and MSR - 0x800.
ID, VERSION_REGISTER, TPR, PPR, EOI, LDR, DFR, SVR = 2, 3, 8, 0xA, 0xB, 0xD, 0xE, 0xF
ISR, TMR, IRR, ESR, ICR_LOW, ICR_HIGH = 0x10, 0x18, 0x20, 0x28, 0x30, 0x31
LVT_ERROR, TIMER_INITIAL, TIMER_CURRENT, TIMER_DIVIDE = 0x37, 0x38, 0x39, 0x3E
SELF_IPI = 0x3F
LVT_FIRST, LVT_COUNT = 0x32, 6  # timer, thermal, performance, LINT0, LINT1, error
# The bits that software may write in each LVT entry.
LVT_WRITABLE = (0x700FF, 0x107FF, 0x107FF, 0x1A7FF, 0x1A7FF, 0x100FF)
TIMER_MODE = 3 << 17
TIMER_PERIODIC, TIMER_DEADLINE = 1 << 17, 2 << 17
ERROR_SEND_VECTOR, ERROR_RECEIVE_VECTOR = 1 << 5, 1 << 6
FIXED, LOWEST, NMI, INIT, STARTUP, EXTINT = 0, 1, 4, 5, 6, 7
SHORTHAND_SELF, SHORTHAND_ALL, SHORTHAND_OTHERS = 1, 2, 3
ICR_WRITABLE = 0xCCFFF
BROADCAST_XAPIC, BROADCAST_X2APIC = 0xFF, 0xFFFF_FFFF
# Frequency of the timer's input: 1 GHz, as KVM's, so that a saved machine fits both.
TIMER_HZ = 1_000_000_000
MASK_32, MASK_64 = 0xFFFF_FFFF, (1 << 64) - 1


class EoiListener(Protocol):
    """An I/O APIC: it wants to know when a level-triggered interrupt was served."""

    def end_of_interrupt(self, vector: int) -> None: ...


class InterruptBus(Protocol):
    """Where an I/O APIC sends its messages, whoever keeps the local APICs."""

    def route(self, destination: int, logical: bool, vector: int, source: SharedStatus) -> None:
        """Have a source send fixed interrupts by itself, as `deliver` would, while it may."""
        ...

    eoi_listeners: list[EoiListener]

    def deliver(self, destination: int, logical: bool, mode: int, vector: int, level: bool) -> bool:
        """Send one message; False when nobody was there to take it."""
        ...


class MessageBus:
    """Reaches local APICs that are not ours (an engine's own) by message-signalled interrupts.

    `send(address, data)` is what a device's write to the interrupt window
    does (SDM vol. 3A section 11.11). Their end-of-interrupt messages are to
    be passed to `eoi_listeners`.
    """

    def __init__(self, send: Callable[[int, int], bool]) -> None:
        self.eoi_listeners: list[EoiListener] = []
        self._send = send

    def deliver(self, destination: int, logical: bool, mode: int, vector: int, level: bool) -> bool:
        address = APIC_BASE_ADDRESS | destination << 12 | logical << 2
        return self._send(address, vector | mode << 8 | level << 15 | 1 << 14)

    def route(self, destination: int, logical: bool, vector: int, source: SharedStatus) -> None:
        """Nothing: an engine that keeps the local APICs has ways of its own."""


class ApicBus:
    """Carries interrupt messages from I/O APICs, devices and local APICs to local APICs."""

    def __init__(self) -> None:
        self.lapics: list[Lapic] = []
        self.eoi_listeners: list[EoiListener] = []
        # Sources that send by themselves, and how often local APICs have changed their addresses.
        self._routed: set[SharedStatus] = set()
        self._addressings = 0

    def matching(self, destination: int, logical: bool, wide: bool = False) -> list[Lapic]:
        """Return the local APICs that `destination` names; `wide` when it has 32 bits."""
        if destination == (BROADCAST_X2APIC if wide else BROADCAST_XAPIC):
            return list(self.lapics)
        if logical:
            return [lapic for lapic in self.lapics if lapic.in_logical(destination)]
        return [lapic for lapic in self.lapics if lapic.apic_id == destination]

    def deliver(self, destination: int, logical: bool, mode: int, vector: int, level: bool) -> bool:
        """Send a message with an 8-bit destination, as I/O APICs and devices do."""
        return self.send(self.matching(destination, logical), mode, vector, level)

    def route(self, destination: int, logical: bool, vector: int, source: SharedStatus) -> None:
        before = self._addressings
        self._routed.add(source)
        targets = self.matching(destination, logical)
        source.route(targets[0].registers.receiver if len(targets) == 1 else 0, vector)
        if self._addressings != before:
            source.route(0, 0)

    def readdress(self) -> None:
        """Have routes looked for anew: a local APIC has another address. From any thread."""
        self._addressings += 1
        for source in tuple(self._routed):
            source.route(0, 0)

    def send(
        self,
        targets: list[Lapic],
        mode: int,
        vector: int,
        level: bool = False,
    ) -> bool:
        """Deliver one message to `targets`; False when nobody was there to take it."""
        if not targets:
            return False
        if mode == LOWEST:
            targets = [min(targets, key=lambda lapic: (lapic.priority(), lapic.apic_id))]
        for lapic in targets:
            lapic.receive(mode, vector, level)
        return True


class Registers:
    """What one local APIC holds; an engine may have them elsewhere (`Lapic.move_registers`).

    The three banks are numbers of 256 bits, one for each vector; `deadline` is None when the
    timer is not armed.
    """

    apic_id: int
    base: int
    tpr: int
    ldr: int
    dfr: int
    svr: int
    isr: int
    irr: int
    tmr: int
    esr: int
    errors: int
    icr: int
    timer_initial: int
    timer_divide: int
    deadline: int | None
    nmi: bool
    # What was written to MSR_EOI_FLAG: an engine that works on the registers may use the flag.
    eoi_flag: int
    # The counter's ticks for one of the timer's input, 32 bits of them fraction.
    scale: int
    # What an engine knows the vCPU by; 0: none interrupts it by itself.
    receiver = 0

    def __init__(self) -> None:
        self.lvt: MutableSequence[int] = [LVT_MASKED] * LVT_COUNT

    def request(self, vector: int, level: bool) -> None:
        """Enter an interrupt among those requested; from any thread."""
        bit = 1 << vector
        self.irr |= bit
        if level:
            self.tmr |= bit
        else:
            self.tmr &= ~bit

    def standing_still(self) -> AbstractContextManager[None]:
        """Return what keeps away whoever else writes to them; not for a thread in a guest."""
        return nullcontext()


@record
class LapicState:
    """Architectural registers; vectors as 256-bit numbers; `deadline` in guest TSC."""

    apic_id: int
    base: int
    tpr: int
    ldr: int
    dfr: int
    svr: int
    isr: int
    irr: int
    tmr: int
    esr: int
    errors: int
    icr: int
    lvt: tuple[int, ...]
    timer_initial: int
    timer_divide: int
    deadline: int | None
    nmi: bool
    eoi_flag: int = 0


@DEVICES.register("lapic")
class Lapic(Device[LapicState]):
    """One vCPU's local APIC; implements `ringzero.core.irq.LocalInterrupts`.

    `clock()` returns the guest's TSC, which runs at `tsc_hz`. INIT and
    STARTUP messages go to `on_init` and `on_startup`, which the run loop sets.
    """

    state_type = LapicState

    def __init__(self, apic_id: int, bus: ApicBus, clock: Callable[[], int], tsc_hz: int) -> None:
        self.apic_id = apic_id
        self.registers = Registers()
        self.registers.apic_id = apic_id
        self.registers.scale = (tsc_hz << 32) // TIMER_HZ
        self.on_init: Callable[[], None] | None = None
        self.on_startup: Callable[[int], None] | None = None
        self._bus = bus
        self._clock = clock
        self._tsc_hz = tsc_hz
        self._lock = threading.RLock()
        self._wake: Callable[[], None] | None = None
        bus.lapics.append(self)
        self.registers.base = APIC_BASE_ADDRESS | BASE_ENABLE | (BASE_BSP if apic_id == 0 else 0)
        self._reset_registers()

    def reset(self) -> None:
        with self._lock:
            self.registers.base = (
                APIC_BASE_ADDRESS | BASE_ENABLE | (BASE_BSP if self.apic_id == 0 else 0)
            )
            self._reset_registers()

    def init(self) -> None:
        """Take an INIT: as `reset`, but the mode and the base stay (SDM 11.4.7.3)."""
        with self._lock, self.registers.standing_still():
            self._reset_registers()

    def _reset_registers(self) -> None:
        registers = self.registers
        registers.tpr = registers.ldr = registers.isr = registers.irr = registers.tmr = 0
        registers.dfr = MASK_32
        registers.svr = 0xFF
        registers.esr = registers.errors = registers.icr = 0
        for number in range(LVT_COUNT):
            registers.lvt[number] = LVT_MASKED
        registers.timer_initial = registers.timer_divide = 0
        registers.deadline = None
        registers.nmi = False
        registers.eoi_flag = 0
        self._bus.readdress()

    def move_registers(self, registers: Registers) -> None:
        """Hold the registers in `registers` from now on, which an engine works on as well.

        That it does only on the thread of the vCPU, but for interrupts that others request.
        """
        old = self.registers
        for name in Registers.__annotations__:
            setattr(registers, name, getattr(old, name))
        for number, entry in enumerate(old.lvt):
            registers.lvt[number] = entry
        self.registers = registers

    # ---- what an engine sees: LocalInterrupts -----------------------------

    def on_change(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def _changed(self) -> None:
        if self._wake is not None:
            self._wake()

    def pending(self) -> bool:
        irr = self.registers.irr
        if not irr or not self.registers.svr & SVR_ENABLE:
            return False
        return (irr.bit_length() - 1) & 0xF0 > self.priority()

    def acknowledge(self) -> int | None:
        with self._lock:
            if not self.pending():
                return None
            vector = self.registers.irr.bit_length() - 1
            bit = 1 << vector
            self.registers.irr ^= bit
            self.registers.isr |= bit
            return vector

    def nmi_pending(self) -> bool:
        return self.registers.nmi

    def take_nmi(self) -> bool:
        """Return whether a non-maskable interrupt waits, and take it."""
        with self._lock:
            waiting, self.registers.nmi = self.registers.nmi, False
            return waiting

    def deadline(self) -> int | None:
        return self.registers.deadline

    def expire(self) -> None:
        with self._lock:
            deadline = self.registers.deadline
            if deadline is None or self._clock() < deadline:
                return
            if (
                self.registers.lvt[0] & TIMER_MODE == TIMER_PERIODIC
                and self.registers.timer_initial
            ):
                period = self._to_tsc(self.registers.timer_initial)
                # Periods that were missed as a whole are lost, as in hardware.
                missed = (self._clock() - deadline) // period
                self.registers.deadline = deadline + (missed + 1) * period
            else:
                self.registers.deadline = None
            entry = self.registers.lvt[0]
            if not entry & LVT_MASKED:
                self._accept(entry & 0xFF, level=False)
        self._changed()

    def get_task_priority(self) -> int:
        return self.registers.tpr >> 4

    def set_task_priority(self, value: int) -> None:
        self.registers.tpr = (value & 0xF) << 4
        if self.registers.irr:
            self._changed()

    # ---- messages ---------------------------------------------------------

    @property
    def x2apic(self) -> bool:
        """Whether software has switched to x2APIC mode."""
        return bool(self.registers.base & BASE_X2APIC)

    def priority(self) -> int:
        """Return the processor priority: bits 7:4 of the PPR."""
        isr = self.registers.isr
        in_service = (isr.bit_length() - 1) & 0xF0 if isr else 0
        task = self.registers.tpr & 0xF0
        return in_service if in_service > task else task

    def in_logical(self, destination: int) -> bool:
        """Return whether a logical destination names this APIC (SDM 11.6.2.2, 11.12.10)."""
        if self.x2apic:
            ldr = self._x2apic_ldr()
            return destination >> 16 == ldr >> 16 and bool(destination & ldr & 0xFFFF)
        own = self.registers.ldr >> 24
        if self.registers.dfr >> 28 == 0xF:
            return bool(destination & own & 0xFF)
        return destination >> 4 == own >> 4 and bool(destination & own & 0xF)

    def _x2apic_ldr(self) -> int:
        return (self.apic_id >> 4) << 16 | 1 << (self.apic_id & 0xF)

    def receive(self, mode: int, vector: int, level: bool) -> None:
        """Take a message from the bus; from any thread."""
        if mode in (FIXED, LOWEST):
            with self._lock:
                if not self.registers.base & BASE_ENABLE or not self.registers.svr & SVR_ENABLE:
                    return
                self._accept(vector, level)
        elif mode == NMI:
            with self._lock:
                self.registers.nmi = True
        elif mode == INIT:
            self.init()
            if self.on_init is not None:
                self.on_init()
        elif mode == STARTUP and self.on_startup is not None:
            self.on_startup(vector)
        self._changed()

    def _accept(self, vector: int, level: bool) -> None:
        if vector < 16:
            self._error(ERROR_RECEIVE_VECTOR)
            return
        self.registers.request(vector, level)

    def _error(self, bit: int) -> None:
        self.registers.errors |= bit
        entry = self.registers.lvt[LVT_ERROR - LVT_FIRST]
        if not entry & LVT_MASKED and entry & 0xFF >= 16:
            self.registers.request(entry & 0xFF, False)

    # ---- registers: MMIO --------------------------------------------------

    def read(self, offset: int, width: int) -> int:
        if self.registers.base & (BASE_ENABLE | BASE_X2APIC) != BASE_ENABLE:
            return MASK_64
        # SDM 11.4.1: 32 bits at 16-byte steps; other accesses are undefined.
        if offset & 0xF or width < 4:
            return 0
        register = offset >> 4
        if register == ID:
            return (self.apic_id & 0xFF) << 24
        if register == LDR:
            return self.registers.ldr
        if register == DFR:
            return self.registers.dfr
        if register == ICR_LOW:
            return self.registers.icr & MASK_32
        if register == ICR_HIGH:
            return self.registers.icr >> 32
        with self._lock:
            value = self._get(register)
        return 0 if value is None else value

    def write(self, offset: int, width: int, value: int) -> None:
        if (
            self.registers.base & (BASE_ENABLE | BASE_X2APIC) != BASE_ENABLE
            or offset & 0xF
            or width < 4
        ):
            return
        register = offset >> 4
        value &= MASK_32
        if register == EOI:
            self._end_of_interrupt()
        elif register == ICR_LOW:
            self.registers.icr = self.registers.icr & ~MASK_32 | value & ICR_WRITABLE
            self._send(self.registers.icr, self.registers.icr >> 56, wide=False)
        elif register == ICR_HIGH:
            self.registers.icr = self.registers.icr & MASK_32 | (value & 0xFF00_0000) << 32
        elif register == LDR:
            self.registers.ldr = value & 0xFF00_0000
            self._bus.readdress()
        elif register == DFR:
            self.registers.dfr = value | 0x0FFF_FFFF
            self._bus.readdress()
        else:
            self._set(register, value)

    # ---- registers: MSRs --------------------------------------------------

    def read_msr(self, index: int) -> int | None:
        """Return the register, or None for #GP (`ringzero.core.bus.MsrDevice`)."""
        if index == MSR_TSC_DEADLINE:
            armed = self.registers.lvt[0] & TIMER_MODE == TIMER_DEADLINE
            return (self.registers.deadline or 0) if armed else 0
        if index == MSR_APIC_BASE:
            return self.registers.base
        if index == MSR_EOI_FLAG:
            return self.registers.eoi_flag
        if not self.x2apic:
            return None
        register = index - MSR_X2APIC_FIRST
        if register == ID:
            return self.apic_id
        if register == LDR:
            return self._x2apic_ldr()
        if register == ICR_LOW:
            return self.registers.icr
        with self._lock:
            return self._get(register)

    def write_msr(self, index: int, value: int) -> bool:
        """Take the write; False means #GP."""
        if index == MSR_TSC_DEADLINE:
            with self._lock:
                if self.registers.lvt[0] & TIMER_MODE == TIMER_DEADLINE:
                    self.registers.deadline = value & MASK_64 or None
            self._changed()
            return True
        if index == MSR_APIC_BASE:
            return self._set_base(value)
        if index == MSR_EOI_FLAG:
            if value & (EOI_FLAG_ALIGNMENT - 1) & ~EOI_FLAG_ENABLE:
                return False
            self.registers.eoi_flag = value
            return True
        if not self.x2apic:
            return False
        register = index - MSR_X2APIC_FIRST
        if register == EOI:
            if value:
                return False
            self._end_of_interrupt()
            return True
        if register == ICR_LOW:
            self.registers.icr = value & (MASK_32 << 32 | ICR_WRITABLE)
            self._send(self.registers.icr, self.registers.icr >> 32, wide=True)
            return True
        if value >> 32:
            return False
        if register == SELF_IPI:
            if value > 0xFF:
                return False
            self._self_ipi(value)
            return True
        return self._set(register, value)

    def _set_base(self, value: int) -> bool:
        if value & ~(BASE_BSP | BASE_X2APIC | BASE_ENABLE) != APIC_BASE_ADDRESS:
            return False
        mode, now = (
            value & (BASE_X2APIC | BASE_ENABLE),
            self.registers.base & (BASE_X2APIC | BASE_ENABLE),
        )
        both = BASE_X2APIC | BASE_ENABLE
        # SDM 11.12.5: x2APIC without enable is invalid, and so are x2APIC to
        # xAPIC and disabled to x2APIC in one step.
        if (
            mode == BASE_X2APIC
            or (now == both and mode == BASE_ENABLE)
            or (not now and mode == both)
        ):
            return False
        with self._lock:
            if not mode & BASE_ENABLE:
                self._reset_registers()
            self.registers.base = value
        self._bus.readdress()
        self._changed()
        return True

    # ---- registers: both ways ---------------------------------------------

    def _get(self, register: int) -> int | None:
        """Return a register that reads alike in both modes, or None when there is none."""
        if TMR <= register < ESR or ISR <= register < TMR:
            bank = (self.registers.isr, self.registers.tmr, self.registers.irr)[
                (register - ISR) >> 3
            ]
            return bank >> 32 * (register & 7) & MASK_32
        if LVT_FIRST <= register < LVT_FIRST + LVT_COUNT:
            return self.registers.lvt[register - LVT_FIRST]
        if register == TPR:
            return self.registers.tpr
        if register == TIMER_CURRENT:
            return self._current_count()
        if register == PPR:
            priority = self.priority()
            return self.registers.tpr if self.registers.tpr & 0xF0 == priority else priority
        if register == TIMER_INITIAL:
            return self.registers.timer_initial
        if register == TIMER_DIVIDE:
            return self.registers.timer_divide
        if register == VERSION_REGISTER:
            return VERSION
        if register == SVR:
            return self.registers.svr
        if register == ESR:
            return self.registers.esr
        return None

    def _set(self, register: int, value: int) -> bool:
        """Write a register that takes the same in both modes; False when there is none."""
        with self._lock:
            if LVT_FIRST <= register < LVT_FIRST + LVT_COUNT:
                self._set_lvt(register - LVT_FIRST, value)
            elif register == TPR:
                self.registers.tpr = value & 0xFF
            elif register == SVR:
                self.registers.svr = value & 0x1FF
                if not value & SVR_ENABLE:
                    for number in range(LVT_COUNT):
                        self.registers.lvt[number] |= LVT_MASKED
            elif register == ESR:
                self.registers.esr, self.registers.errors = self.registers.errors, 0
            elif register == TIMER_INITIAL:
                if self.registers.lvt[0] & TIMER_MODE != TIMER_DEADLINE:
                    self.registers.timer_initial = value
                    self.registers.deadline = self._clock() + self._to_tsc(value) if value else None
            elif register == TIMER_DIVIDE:
                self.registers.timer_divide = value & 0xB
            else:
                return False
        self._changed()
        return True

    def _set_lvt(self, number: int, value: int) -> None:
        value &= LVT_WRITABLE[number]
        if not self.registers.svr & SVR_ENABLE:
            value |= LVT_MASKED
        old, new = self.registers.lvt[0] & TIMER_MODE, value & TIMER_MODE
        # SDM 11.5.4.1: going to or from TSC-deadline mode disarms the timer.
        if number == 0 and old != new and TIMER_DEADLINE in (old, new):
            self.registers.deadline = None
            self.registers.timer_initial = 0
        self.registers.lvt[number] = value

    def _end_of_interrupt(self) -> None:
        with self._lock:
            isr = self.registers.isr
            if not isr:
                return
            vector = isr.bit_length() - 1
            bit = 1 << vector
            self.registers.isr = isr ^ bit
            level = self.registers.tmr & bit
            waiting = self.registers.irr
        if level:
            for listener in self._bus.eoi_listeners:
                listener.end_of_interrupt(vector)
        if waiting:
            self._changed()

    def _self_ipi(self, vector: int) -> None:
        with self._lock:
            if vector < 16:
                self._error(ERROR_SEND_VECTOR)
            elif self.registers.svr & SVR_ENABLE:
                self._accept(vector, level=False)
        self._changed()

    def _send(self, command: int, destination: int, wide: bool) -> None:
        """Carry out a write of the interrupt-command register (SDM 11.6.1)."""
        vector, mode = command & 0xFF, command >> 8 & 7
        shorthand = command >> 18 & 3
        if mode in (FIXED, LOWEST) and vector < 16:
            with self._lock:
                self._error(ERROR_SEND_VECTOR)
            return
        # Level de-assert of INIT only sets arbitration IDs of APICs long gone.
        if mode == INIT and command & 0x8000 and not command & 0x4000:
            return
        if shorthand == SHORTHAND_SELF:
            targets = [self]
        elif shorthand == SHORTHAND_ALL:
            targets = list(self._bus.lapics)
        elif shorthand == SHORTHAND_OTHERS:
            targets = [lapic for lapic in self._bus.lapics if lapic is not self]
        else:
            targets = self._bus.matching(destination, bool(command & 0x800), wide)
        if mode in (INIT, STARTUP):
            targets = [lapic for lapic in targets if lapic is not self]
        self._bus.send(targets, mode, vector)

    # ---- timer ------------------------------------------------------------

    def _divisor(self) -> int:
        """Return the timer's divisor, 1-128 (SDM figure 11-10)."""
        code = self.registers.timer_divide & 3 | self.registers.timer_divide >> 1 & 4
        return 1 << ((code + 1) & 7)

    def _to_tsc(self, count: int) -> int:
        return max(count * self._divisor() * self.registers.scale >> 32, 1)

    def _current_count(self) -> int:
        if self.registers.deadline is None or self.registers.lvt[0] & TIMER_MODE == TIMER_DEADLINE:
            return 0
        left = self.registers.deadline - self._clock()
        if left <= 0:
            return 0
        return min(left * TIMER_HZ // self._tsc_hz // self._divisor(), self.registers.timer_initial)

    # ---- state ------------------------------------------------------------

    def save(self) -> LapicState:
        with self._lock:
            return LapicState(
                self.apic_id,
                self.registers.base,
                self.registers.tpr,
                self.registers.ldr,
                self.registers.dfr,
                self.registers.svr,
                self.registers.isr,
                self.registers.irr,
                self.registers.tmr,
                self.registers.esr,
                self.registers.errors,
                self.registers.icr,
                tuple(self.registers.lvt),
                self.registers.timer_initial,
                self.registers.timer_divide,
                self.registers.deadline,
                self.registers.nmi,
                self.registers.eoi_flag,
            )

    def restore(self, state: LapicState) -> None:
        if state.apic_id != self.apic_id or len(state.lvt) != LVT_COUNT:
            raise StateError("lapic: state of another APIC", expected=self.apic_id)
        if min(state.isr, state.irr, state.tmr) < 0 or (state.isr | state.irr | state.tmr) >> 256:
            raise StateError("lapic: there are 256 vectors")
        with self._lock:
            self.registers.base = (
                state.base & (BASE_BSP | BASE_X2APIC | BASE_ENABLE) | APIC_BASE_ADDRESS
            )
            self.registers.tpr = state.tpr & 0xFF
            self.registers.ldr = state.ldr & 0xFF00_0000
            self.registers.dfr = state.dfr & MASK_32
            self.registers.svr = state.svr & 0x1FF
            # Vectors 0-15 cannot be in the registers (SDM 11.5.2).
            self.registers.isr, self.registers.irr, self.registers.tmr = (
                vectors >> 16 << 16 for vectors in (state.isr, state.irr, state.tmr)
            )
            self.registers.esr = state.esr & 0xFF
            self.registers.errors = state.errors & 0xFF
            self.registers.icr = state.icr & MASK_64
            for number, (entry, mask) in enumerate(zip(state.lvt, LVT_WRITABLE, strict=True)):
                self.registers.lvt[number] = entry & (mask | LVT_MASKED)
            self.registers.timer_initial = state.timer_initial & MASK_32
            self.registers.timer_divide = state.timer_divide & 0xB
            self.registers.deadline = None if state.deadline is None else state.deadline & MASK_64
            self.registers.nmi = state.nmi
            aligned = ~(EOI_FLAG_ALIGNMENT - 1) & MASK_64
            self.registers.eoi_flag = state.eoi_flag & (aligned | EOI_FLAG_ENABLE)
        self._bus.readdress()
        self._changed()
