"""One x86 vCPU of the software engine: what it has beyond those of other architectures."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING, Any, Protocol

from ringzero.core.memory import GuestMemory
from ringzero.engine.exits import Exit, Rested
from ringzero.engine.soft.contract import MASK_64, Counter, SoftVcpu
from ringzero.engine.soft.x86.apic import SharedRegisters
from ringzero.engine.soft.x86.irqstatus import IrqStatuses
from ringzero.engine.soft.x86.lookaside import Lookaside, SharedLookaside
from ringzero.engine.soft.x86.native import NativeEngine
from ringzero.engine.soft.x86.ports import Ports
from ringzero.engine.soft.x86.report import handled_instructions, unknown_instructions
from ringzero.engine.soft.x86.transmit import TransmitQueues
from ringzero.engine.x86 import (
    LocalApic,
    MovableApic,
    MsrRead,
    MsrWrite,
    PortRead,
    PortWrite,
)
from ringzero.isa.execution import (
    EXIT_MMIO_READ,
    EXIT_MMIO_WRITE,
    NEVER,
    REQUEST_INTERRUPT,
    REQUEST_KICK,
)
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.cpu import IDLE_WALKS, LONGEST_SLEEP, REQUEST_NMI, Cpu
from ringzero.isa.x86.state import CpuState
from ringzero.jit.x86.tables import Translator

if TYPE_CHECKING:
    from ringzero.engine.soft.x86.reveal import Revealer

NANOSECONDS = 1_000_000_000
# Nanoseconds for which a guest's only vCPU looks out for interrupts at most before it sleeps. It
# waits for devices, and takes no time from another vCPU: as long as KVM does (halt_poll_ns).
_MOST_POLLED_ALONE = 200_000
# Whoever hears that a vCPU rests does something about it, which takes a millisecond: it is told so
# after work, and of one that only woke for a moment where its timer leaves it alone for so many
# seconds.
_LONG_SLEEP = 30
# Exits that end with `complete`.
_ACCESSES = frozenset(
    (
        EXIT_MMIO_READ, EXIT_MMIO_WRITE, x86.EXIT_PORT_READ, x86.EXIT_PORT_WRITE,
        x86.EXIT_MSR_READ, x86.EXIT_MSR_WRITE,
    )
)  # fmt: skip


class Machine(Counter, Protocol):
    """What a vCPU wants of its machine."""

    engine: NativeEngine
    memory: GuestMemory
    # A view of the CodeSpace that all vCPUs share.
    code: Any
    # A view of the Exclusive by which they stop one another.
    exclusive: Any
    revealer: Revealer | None
    ports: Ports
    irq_status: IrqStatuses
    transmit: TransmitQueues

    def look(self) -> None:
        """See to the room for translated code after an exit."""

    def forget_counts(self) -> None:
        """Give back the memory of the counts of what was interpreted."""

    def describe_memory(self, cpu: Any) -> None:
        """Tell native code where RAM is, by a view of a vCPU's struct."""


class X86SoftVcpu(SoftVcpu[CpuState]):
    """Adds ports, model-specific registers, CR8, NMIs, and the tables of addresses and jumps."""

    writes = frozenset((EXIT_MMIO_WRITE, x86.EXIT_PORT_WRITE, x86.EXIT_MSR_WRITE))

    def __init__(
        self,
        vm: Machine,
        index: int,
        interrupts: LocalApic,
        inherited: SharedLookaside | None = None,
    ) -> None:
        self.vm = vm
        self._apic = interrupts
        super().__init__(index, Cpu, vm.engine.run_translator, vm, interrupts)
        cpu = self.cpu
        self._lookaside = Lookaside(cpu, inherited)
        # Touched when the vCPU translates, as most of a process are those of idle clones.
        self._work = mmap.mmap(-1, Translator.size)
        work = ctypes.addressof(ctypes.c_char.from_buffer(self._work))
        self.translator = vm.engine.translator(work, vm.code.address)
        cpu.engine = work
        cpu.ports = vm.ports.address
        cpu.irq_status = vm.irq_status.address
        cpu.transmit = vm.transmit.address
        cpu.exclusive = vm.exclusive.address
        vm.engine.connect(self.address)
        vm.describe_memory(cpu)
        # Whether native code keeps the local APIC.
        self._kept = isinstance(interrupts, MovableApic)
        if isinstance(interrupts, MovableApic):
            cpu.tick_nanoseconds = (NANOSECONDS << 32) // vm.counter_hz
            cpu.tick_limit = LONGEST_SLEEP * vm.counter_hz
            # With one processor only, what it waits for would wait for it.
            if len(os.sched_getaffinity(0)) > 1:
                cpu.most_polled_alone = _MOST_POLLED_ALONE
            registers = SharedRegisters(vm.engine, cpu, vm.exclusive.address)
            interrupts.move_registers(registers)
            cpu.apic.kept = 1
        cpu.rests_from = 0 if self._kept and self._lookaside.can_rest else NEVER
        cpu.worked = vm.read_host_counter()
        self._kind_handlers |= {
            x86.EXIT_PORT_READ: self._port_read,
            x86.EXIT_PORT_WRITE: self._port_write,
            x86.EXIT_MSR_READ: self._msr_read,
            x86.EXIT_MSR_WRITE: self._msr_write,
            x86.EXIT_CR8_READ: self._cr8_read,
            x86.EXIT_CR8_WRITE: self._cr8_write,
            x86.EXIT_RANDOM: self._random,
            x86.EXIT_NMI: self._nmi,
            x86.EXIT_GATHERED: self._gathered,
        }

    @property
    def asleep(self) -> bool:
        return bool(self.cpu.sleeping)

    def _after_exit(self) -> None:
        vm = self.vm
        vm.transmit.deliver()
        if vm.ports.deliver() and self._exit_kind.value not in _ACCESSES:
            vm.ports.finish()
        vm.look()
        if vm.revealer is not None:
            with vm.engine.stopped(vm.exclusive.address):
                vm.revealer.look(self.cpu)

    def _before_run(self) -> None:
        # The timer's deadline is a register of an APIC that native code keeps.
        if not self._kept:
            super()._before_run()

    def kick(self) -> None:
        if self._kept:
            self.vm.engine.notify(self.address, REQUEST_KICK)
        else:
            super().kick()

    def _wakes(self) -> bool:
        return self._apic.pending() or self._apic.nmi_pending()

    # --- exits ---

    def _request(self) -> Exit | None:
        cpu = self.cpu
        if not cpu.resting:
            return super()._request()
        worked = cpu.count_walks >= cpu.rests_from
        self._rest()
        return Rested() if worked or self._sleeps_long() else super()._request()

    def _sleeps_long(self) -> bool:
        """Whether its timer, if anything, wakes the vCPU in so long a while that `Rested` pays."""
        vm, deadline = self.vm, int(self._deadline.value)
        if deadline == NEVER:
            return True
        ahead = (deadline - vm.read_counter()) & MASK_64
        return bool(_LONG_SLEEP * vm.counter_hz < ahead < 1 << 63)

    def _rest(self) -> None:
        """Give back the memory of tables that the vCPU has not needed for a while."""
        cpu = self.cpu
        cpu.resting = 0
        with self.vm.engine.stopped(self.vm.exclusive.address):
            self._lookaside.rest()
            self.vm.forget_counts()
        # What an idle guest fills when it wakes it keeps, or it would do so each time.
        cpu.rests_from = cpu.count_walks + 2 * IDLE_WALKS

    def _port_read(self) -> Exit:
        port, width, _ = self._access()
        return PortRead(port, width)

    def _port_write(self) -> Exit:
        port, width, value = self._access()
        return PortWrite(port, width, value & ((1 << width * 8) - 1))

    def _msr_read(self) -> Exit:
        index, _, _ = self._access()
        return MsrRead(index)

    def _msr_write(self) -> Exit:
        index, _, value = self._access()
        return MsrWrite(index, value)

    def _cr8_read(self) -> None:
        self.complete(self._apic.get_task_priority())

    def _cr8_write(self) -> None:
        self._apic.set_task_priority(self.cpu.exit_value & 0xF)
        self._interrupts_changed()
        self.complete(0)

    def _random(self) -> None:
        self.complete(int.from_bytes(os.urandom(8), "little"))

    def _nmi(self) -> None:
        if self._apic.take_nmi():
            self.cpu.inject = x86.NMI + 1
        self._interrupts_changed()

    def complete(self, value: int | None) -> None:
        super().complete(value)
        self.vm.ports.finish()

    def _gathered(self) -> None:
        """Nothing is left to do: they were delivered after the exit, as after any."""

    def _tell_interrupts(self) -> None:
        if self._kept:
            # Native code looks itself what there is.
            nmi = REQUEST_NMI if self._apic.nmi_pending() else 0
            self.vm.engine.notify(self.address, REQUEST_INTERRUPT | nmi)
            return
        super()._tell_interrupts()
        nmi = self._apic.nmi_pending()
        self._isa_flag.value = nmi
        if nmi:
            self._wake.set()

    # --- state ---

    def set_state(self, state: CpuState) -> None:
        super().set_state(state)
        if self._lookaside.holds():
            self._flush.value = 0

    def share(self) -> SharedLookaside:
        return self._lookaside.share(holds=not self._flush.value)

    def close(self) -> None:
        self._lookaside.close()

    def _last_words(self) -> str:
        from ringzero.isa.x86.shutdown import describe

        cpu = self.cpu
        code = f" (error code {cpu.fault_code:#x})" if cpu.fault_has_code else ""
        first = f"the last exception was {cpu.fault_vector}{code}"
        if unknown := unknown_instructions(cpu):
            first += f"; unknown instructions: {', '.join(unknown)}"
        return f"{first}\n{describe(self._read_state(), self.vm.memory)}"

    def _read_state(self) -> CpuState:
        # Loaded when it is first needed, like what it imports: all that privileged code does.
        from ringzero.isa.x86.state_io import read_state

        return read_state(self.cpu, self.vm.read_host_counter())

    def _write_state(self, state: CpuState) -> None:
        from ringzero.isa.x86.state_io import write_state

        write_state(self.cpu, state, self.vm.read_host_counter())

    def _code_address(self) -> int:
        cpu = self.cpu
        if cpu.mode == x86.MODE_64:
            return int(cpu.rip)
        return int(cpu.seg[x86.CS].base + cpu.rip) & 0xFFFFFFFF

    def _handled(self) -> list[int]:
        count = len(self.vm.engine.mnemonics)
        return list((ctypes.c_uint32 * count).from_address(self.vm.code.handled))

    def statistics(self) -> dict[str, int]:
        cpu = self.cpu
        names = ("tlb_misses", "walks", "slow", "exceptions", "unknown", "dropped")
        code = self.vm.code
        work = ("blocks", "insns", "generic", "lookups", "cold", "links", "adopted", "flushes")
        return {
            **super().statistics(),
            **{name: int(getattr(cpu, f"count_{name}")) for name in names},
            **({"halts": cpu.count_halts, "ipis": cpu.count_ipis} if self._kept else {}),
            **{f"unknown {code}": n for code, n in unknown_instructions(cpu).items()},
            **handled_instructions(self._handled(), self.vm.engine.mnemonics),
            **{f"translator_{name}": int(getattr(code, f"count_{name}")) for name in work},
        }
