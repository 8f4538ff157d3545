"""One vCPU of the software engine: its native struct, its exits, its interrupts."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ringzero.engine.contract import Vcpu
from ringzero.engine.exits import (
    DebugStop,
    Exit,
    Halt,
    Kicked,
    MmioRead,
    MmioWrite,
    Shutdown,
)
from ringzero.engine.soft.report import unknown_instructions
from ringzero.engine.x86 import LocalApic, MsrRead, MsrWrite, PortRead, PortWrite
from ringzero.errors import EngineError
from ringzero.host.memory import HostMemory, MemoryImage
from ringzero.isa.caches import (
    JUMP_ENTRIES,
    JUMP_NEVER_FIRST,
    TLB_ENTRIES,
    JumpCacheEntry,
    TlbEntry,
)
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.cpu import Cpu
from ringzero.isa.x86.interpreter import NEVER
from ringzero.isa.x86.shutdown import describe
from ringzero.isa.x86.state import CpuState
from ringzero.isa.x86.view import CpuView

if TYPE_CHECKING:
    from ringzero.engine.soft.vm import SoftVm

# Instructions between two looks at requests and the timer: some 20 us of work.
SLICE = 20_000
_REQUESTS = Cpu.offset_of("requests")
# Byte of `Cpu.requests` for each request bit.
_KICK, _INTERRUPT, _FLUSH, _NMI = (
    _REQUESTS + bit.bit_length() // 8
    for bit in (x86.REQUEST_KICK, x86.REQUEST_INTERRUPT, x86.REQUEST_FLUSH, x86.REQUEST_NMI)
)
# What is left of the slice is signed: a block may end a little beyond it.
_MASK_64 = (1 << 64) - 1
# The tables of a vCPU: three TLBs (user, kernel, checked), two jump caches (user, kernel).
_TLB = TLB_ENTRIES * TlbEntry.size
_JUMPS = JUMP_ENTRIES * JumpCacheEntry.size
_FIRST_JUMPS = 3 * _TLB
_TABLES = _FIRST_JUMPS + 2 * _JUMPS
_WRITES = frozenset((x86.EXIT_PORT_WRITE, x86.EXIT_MMIO_WRITE, x86.EXIT_MSR_WRITE))


@functools.cache
def _empty_tables() -> MemoryImage:
    """Return the tables of a vCPU that has run nothing yet, to be copied on write."""
    tables = HostMemory("vcpu-tables", _TABLES)
    # A tag of all ones matches no page.
    tables.view[:] = b"\xff" * _TABLES
    for table in (_FIRST_JUMPS, _FIRST_JUMPS + _JUMPS):
        struct.pack_into("=Q", tables.view, table, JUMP_NEVER_FIRST)
    image = tables.freeze()
    image.share()
    tables.close()
    return image


class SoftVcpu(Vcpu[CpuState]):
    """Implements the contract; made by `SoftVm.create_vcpu`."""

    def __init__(self, vm: SoftVm, index: int, interrupts: LocalApic) -> None:
        self.index = index
        self.vm = vm
        self._interrupts = interrupts
        self._memory = mmap.mmap(-1, Cpu.size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.cpu = CpuView(self.address)
        cpu = self.cpu
        # A clone takes host memory only for as much of its tables as it uses.
        self._tables = HostMemory("vcpu-tables", _TABLES, _empty_tables())
        cpu.tlb_user = self._tables.address
        cpu.tlb_kernel = cpu.tlb_user + _TLB
        cpu.tlb = cpu.tlb_kernel
        cpu.tlb_checked = cpu.tlb_kernel + _TLB
        cpu.jump_user = self._tables.address + _FIRST_JUMPS
        cpu.jump_kernel = cpu.jump_user + _JUMPS
        cpu.jump_cache = cpu.jump_kernel
        cpu.tsc_deadline = NEVER
        cpu.reported = x86.NOT_REPORTED
        cpu.slice = cpu.budget = SLICE
        cpu.index = index
        vm.engine.connect(self.address)
        vm.describe_memory(cpu)
        self._enter = vm.engine.run_translator
        self._pending_exit = x86.EXIT_NONE
        # What the next run() returns, found while an access was finished.
        self._early: Exit | None = None
        self._wake = threading.Event()
        self._flags = {
            offset: ctypes.c_uint8.from_address(self.address + offset)
            for offset in (_KICK, _INTERRUPT, _FLUSH, _NMI)
        }
        self._kind_handlers: dict[int, Callable[[], Exit | None]] = {
            x86.EXIT_PORT_READ: self._port_read,
            x86.EXIT_PORT_WRITE: self._port_write,
            x86.EXIT_MMIO_READ: self._mmio_read,
            x86.EXIT_MMIO_WRITE: self._mmio_write,
            x86.EXIT_MSR_READ: self._msr_read,
            x86.EXIT_MSR_WRITE: self._msr_write,
            x86.EXIT_CR8_READ: self._cr8_read,
            x86.EXIT_CR8_WRITE: self._cr8_write,
            x86.EXIT_RANDOM: self._random,
            x86.EXIT_HALT: self._halt,
            x86.EXIT_SHUTDOWN: self._shutdown,
            x86.EXIT_DEBUG: self._debug_stop,
            x86.EXIT_REQUEST: self._request,
            x86.EXIT_INTERRUPT: self._interrupt,
            x86.EXIT_TIMER: self._timer,
            x86.EXIT_NMI: self._nmi,
        }
        interrupts.on_change(self._interrupts_changed)

    # --- running ---

    def run(self) -> Exit:
        if self._early is not None:
            early, self._early = self._early, None
            return early
        if self._pending_exit in _WRITES:
            self.complete(0)
        elif self._pending_exit != x86.EXIT_NONE:
            raise EngineError("a vCPU cannot run before its read is answered", vcpu=self.index)
        deadline = self._interrupts.deadline()
        self.cpu.tsc_deadline = NEVER if deadline is None else deadline
        while True:
            result = self._run_once()
            if result is not None:
                return result

    def _run_once(self) -> Exit | None:
        kind = self._enter(self.address)
        self.cpu.count_exits += 1
        self.vm.space.look()
        if self.vm.revealer is not None:
            self.vm.revealer.look(self.cpu)
        return self._kind_handlers[kind]()

    def _finish_access(self) -> None:
        """Run an instruction whose outside access was answered to its end, and no further."""
        if self._pending_exit in _WRITES:
            self.complete(0)
        cpu = self.cpu
        while (cpu.external_done or cpu.refuse) and self._early is None:
            # Native code looks at requests when the instruction is complete. If it has
            # another access, that is what the next run() returns; else that is Kicked.
            self._flags[_KICK].value = 1
            self._early = self._run_once()

    def complete(self, value: int | None) -> None:
        cpu = self.cpu
        self._pending_exit = x86.EXIT_NONE
        if value is None:
            cpu.refuse = 1
            cpu.external_done = 0
            return
        done = cpu.external_done
        cpu.external_values[done] = value
        cpu.external_done = done + 1

    def kick(self) -> None:
        self._flags[_KICK].value = 1
        self._wake.set()

    def wait(self, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            self._wake.clear()
            if self._interrupts.pending() or self._interrupts.nmi_pending():
                return
            if self._flags[_KICK].value:
                return
            pause = None if end is None else end - time.monotonic()
            deadline = self._interrupts.deadline()
            if deadline is not None:
                due = (deadline - self.vm.read_counter()) / self.vm.counter_hz
                if due <= 0:
                    self._timer()
                    return
                pause = due if pause is None else min(pause, due)
            if pause is not None and pause <= 0:
                return
            self._wake.wait(pause)

    def flush(self) -> None:
        """Make the vCPU forget translations before it goes on; from any thread."""
        self._flags[_FLUSH].value = 1

    # --- exits ---

    def _access(self) -> tuple[int, int, int]:
        cpu = self.cpu
        self._pending_exit = cpu.exit_kind
        return cpu.exit_address, cpu.exit_width, cpu.exit_value

    def _port_read(self) -> Exit:
        port, width, _ = self._access()
        return PortRead(port, width)

    def _port_write(self) -> Exit:
        port, width, value = self._access()
        return PortWrite(port, width, value & ((1 << width * 8) - 1))

    def _mmio_read(self) -> Exit:
        address, width, _ = self._access()
        return MmioRead(address, width)

    def _mmio_write(self) -> Exit:
        address, width, value = self._access()
        return MmioWrite(address, width, value & ((1 << width * 8) - 1))

    def _msr_read(self) -> Exit:
        index, _, _ = self._access()
        return MsrRead(index)

    def _msr_write(self) -> Exit:
        index, _, value = self._access()
        return MsrWrite(index, value)

    def _cr8_read(self) -> None:
        self.complete(self._interrupts.get_task_priority())

    def _cr8_write(self) -> None:
        self._interrupts.set_task_priority(self.cpu.exit_value & 0xF)
        self._interrupts_changed()
        self.complete(0)

    def _random(self) -> None:
        self.complete(int.from_bytes(os.urandom(8), "little"))

    def _halt(self) -> Exit:
        # As with KVM: who runs a vCPU again after Halt means it to go on behind HLT.
        self.cpu.halted = 0
        return Halt()

    def _shutdown(self) -> Exit:
        from ringzero.isa.x86.state_io import read_state

        cpu = self.cpu
        code = f" (error code {cpu.fault_code:#x})" if cpu.fault_has_code else ""
        first = f"the last exception was {cpu.fault_vector}{code}"
        if unknown := unknown_instructions(cpu):
            first += f"; unknown instructions: {', '.join(unknown)}"
        return Shutdown(f"{first}\n{describe(read_state(cpu, 0), self.vm.memory)}")

    def _debug_stop(self) -> Exit:
        return DebugStop(self.cpu.exit_address)

    def _request(self) -> Exit:
        return Kicked()

    def _interrupt(self) -> None:
        vector = self._interrupts.acknowledge()
        if vector is not None:
            self.cpu.inject = vector + 1
        self._interrupts_changed()

    def _nmi(self) -> None:
        if self._interrupts.take_nmi():
            self.cpu.inject = x86.NMI + 1
        self._interrupts_changed()

    def _timer(self) -> None:
        self.cpu.tsc_deadline = NEVER
        self._interrupts.expire()
        self._interrupts_changed()

    def _interrupts_changed(self) -> None:
        interrupts = self._interrupts
        pending = interrupts.pending()
        self._flags[_INTERRUPT].value = pending
        nmi = interrupts.nmi_pending()
        self._flags[_NMI].value = nmi
        deadline = interrupts.deadline()
        self.cpu.tsc_deadline = NEVER if deadline is None else deadline
        if pending or nmi or deadline is not None:
            self._wake.set()

    # --- state ---

    def get_state(self) -> CpuState:
        from ringzero.isa.x86.state_io import read_state

        self._finish_access()
        return read_state(self.cpu, self.vm.engine.read_host_tsc(0))

    def set_state(self, state: CpuState) -> None:
        from ringzero.isa.x86.state_io import write_state

        self._pending_exit = x86.EXIT_NONE
        self._early = None
        self.cpu.refuse = 0
        write_state(self.cpu, state, self.vm.engine.read_host_tsc(0))
        self.cpu.tsc_offset = self.vm.common_tsc_offset(self)
        self.flush()

    def debug(self, single_step: bool, breakpoints: tuple[int, ...] = ()) -> None:
        if len(breakpoints) > x86.HOST_BREAKPOINTS:
            raise EngineError(
                "too many breakpoints", limit=x86.HOST_BREAKPOINTS, asked=len(breakpoints)
            )
        self._finish_access()
        cpu = self.cpu
        for number, address in enumerate(breakpoints):
            cpu.breakpoints[number] = address
        cpu.single_step = (1 << len(breakpoints)) - 1 | (x86.HOST_STEP if single_step else 0)
        linear = (cpu.seg[x86.CS].base + cpu.rip) & 0xFFFFFFFF
        here = cpu.rip if cpu.mode == x86.MODE_64 else linear
        # A step ends behind the instruction at RIP; what was reported before and left is new.
        if single_step:
            cpu.reported = here
        elif cpu.reported != here:
            cpu.reported = x86.NOT_REPORTED

    def statistics(self) -> dict[str, int]:
        cpu = self.cpu
        names = (
            "tlb_misses", "walks", "slow", "exits", "exceptions", "interrupts", "unknown",
            "dropped",
        )  # fmt: skip
        translator = self.vm.translator
        work = ("blocks", "insns", "generic", "lookups", "cold", "links", "adopted", "flushes")
        counts = {name: int(getattr(cpu, f"count_{name}")) for name in names}
        return {
            "instructions": (cpu.count_instructions + cpu.slice - cpu.budget) & _MASK_64,
            **counts,
            **{f"unknown {code}": n for code, n in unknown_instructions(cpu).items()},
            **{f"translator_{name}": int(getattr(translator, f"count_{name}")) for name in work},
        }
