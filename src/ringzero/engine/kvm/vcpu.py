"""One vCPU under KVM: KVM_RUN, what comes out of it, and how it is stopped."""

from __future__ import annotations

import errno
import fcntl
import signal
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from ringzero.core.memory import GuestMemory
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
from ringzero.engine.kvm import state as translate
from ringzero.engine.x86 import LocalApic, MsrRead, MsrWrite, PortRead, PortWrite
from ringzero.errors import EngineError
from ringzero.host.kvm import abi as kvm
from ringzero.host.kvm import fd as kvmfd
from ringzero.isa.x86.cpuid import CpuidLeaf
from ringzero.isa.x86.state import MSR_TSC, CpuState

if TYPE_CHECKING:
    from ringzero.engine.kvm.alarm import Alarm

# Ends KVM_RUN from another thread. It is blocked everywhere but within KVM_RUN, so that it
# needs no handler and is never lost. The C library keeps the first real-time signals.
KICK = signal.SIGRTMIN + 4

_QUAD = struct.Struct("<Q")
_IO = struct.Struct("<BBHIQ")
_MMIO = struct.Struct("<QQIB")
# Integers in `kvm_run`, by their width.
_INTEGERS = {1: struct.Struct("<B"), 2: struct.Struct("<H"), 4: struct.Struct("<I"), 8: _QUAD}
_MASKS = {width: (1 << width * 8) - 1 for width in _INTEGERS}
_UNION = kvm.Run.u.offset
_MMIO_DATA = _UNION + 8
_REASON = kvm.Run.exit_reason.offset
# Where a processor starts after a reset: RIP, and the base of CS (SDM vol. 3A, 9.1.4).
_RESET = 0xFFF0, 0xFFFF_0000

_EXIT_NAMES = {
    value: name.removeprefix("EXIT_").lower()
    for name, value in vars(kvm).items()
    if name.startswith("EXIT_")
}
# Reasons of KVM_EXIT_INTERNAL_ERROR (<linux/kvm.h>).
_INTERNAL = {1: "an instruction that KVM cannot emulate", 2: "an event within an event"}


class Machine(Protocol):
    """What a vCPU needs of the VM that it belongs to."""

    system: kvmfd.KvmSystem
    fd: kvmfd.KvmFd
    memory: GuestMemory
    on_eoi: Callable[[int], None] | None
    apics: bool
    xcrs: bool
    msr_indices: list[int]
    on_fault: Callable[[BaseException], None] | None
    gathered: kvmfd.CoalescedPage | None

    @property
    def counter_hz(self) -> int: ...

    def read_counter(self) -> int: ...

    def collect_dirty(self) -> None:
        """Take what the dirty rings hold."""

    def deliver_gathered(self) -> None:
        """Pass on the gathered writes."""

    def common_tsc_offset(self, index: int, wanted: int) -> int:
        """Return the offset that vCPU `index` shares with others, or else `wanted`."""

    def follow_tsc(self, vcpu: KvmVcpu) -> None:
        """Let `read_counter` go on from what `vcpu` shows now."""


class KvmVcpu(Vcpu[CpuState]):
    """Implements the contract; `interrupts` is None with local APICs in the kernel."""

    # KVM_GUESTDBG_BLOCKIRQ, and `_offer_interrupt`.
    steps_with_interrupts = False

    def __init__(self, vm: Machine, index: int, interrupts: LocalApic | None) -> None:
        self.index = index
        self._vm = vm
        self._fd = kvmfd.KvmVcpuFd(vm.system, vm.fd, index)
        self.descriptor = self._fd
        self._run = self._fd.run
        self._data = self._fd.data
        # Read at every exit, which through `_run` would take three times as long.
        self._reason = self._data[_REASON : _REASON + 4].cast("I")
        self._interrupts = interrupts
        # Accesses of one exit that are still to be reported, and where an answer goes.
        self._queue: deque[tuple[Exit, int]] = deque()
        self._answer: Exit | None = None
        self._answer_at = 0
        self._unfinished = False
        # Guards who is in KVM_RUN; `_wake` is set by whatever ends a `wait`.
        self._lock = threading.Lock()
        self._inside: int | None = None
        self._masked: int | None = None
        self._kicked = False
        self._wake = threading.Event()
        self._alarm: Alarm | None = None
        # Whether the debugger wants each instruction: interrupts wait meanwhile.
        self._stepping = False
        # What CR8 was when the guest was last entered.
        self._task_priority = 0
        self._exits: dict[int, int] = {}
        self._kicks = 0
        if interrupts is not None:
            interrupts.on_change(self._interrupts_changed)

    # ---- running ----------------------------------------------------------

    def run(self) -> Exit:
        if self._queue:
            return self._next_access()
        if self._answer is not None:
            raise EngineError(f"vCPU {self.index} was run before {self._answer} was answered")
        ident = threading.get_ident()
        if self._masked != ident:
            self._take_thread(ident)
        # Whoever kicks and does not see this yet has set `immediate_exit` before.
        self._inside = ident
        try:
            while True:
                if self._interrupts is not None:
                    self._offer_interrupt(self._interrupts)
                found = self._enter()
                if found is not None:
                    return found
        finally:
            with self._lock:
                self._inside = None

    def _take_thread(self, ident: int) -> None:
        """Arrange signals for the thread that runs the vCPU from now on."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [KICK])
        self._fd.set_signal_mask({int(number) for number in blocked} - {int(KICK)})
        self._masked = ident

    def _enter(self) -> Exit | None:
        """Enter the guest once; None: go on, nothing for the run loop."""
        ended = self._enter_kernel()
        if self._interrupts is not None and self._run.cr8 != self._task_priority:
            # Raising it makes no exit of its own, so that this is the time to hear of it.
            self._interrupts.set_task_priority(self._run.cr8)
        return self._dispatch() if ended else self._interrupted()

    def _enter_kernel(self) -> bool:
        """Issue KVM_RUN; False when a signal or `immediate_exit` ended it."""
        self._unfinished = False
        try:
            fcntl.ioctl(self._fd.fd, kvm.RUN, 0)
        except OSError as cause:
            # EAGAIN: an AP was woken that is not yet to run.
            if cause.errno in (errno.EINTR, errno.EAGAIN):
                return False
            raise EngineError(
                f"KVM cannot run vCPU {self.index}: {cause.strerror}", errno=cause.errno
            ) from cause
        return True

    def _dispatch(self) -> Exit | None:
        reason = self._reason[0]
        self._exits[reason] = self._exits.get(reason, 0) + 1
        ring = self._vm.gathered
        if ring is not None and ring.waiting():
            self._vm.deliver_gathered()
        if reason == kvm.EXIT_IO:
            return self._port_access()
        if reason == kvm.EXIT_MMIO:
            return self._memory_access()
        return self._other_exit(reason)

    def _interrupted(self) -> Exit | None:
        with self._lock:
            kicked, self._kicked = self._kicked, False
            self._run.immediate_exit = 0
        signal.sigtimedwait([KICK], 0)
        return Kicked() if kicked else None

    def _port_access(self) -> Exit:
        direction, width, port, count, offset = _IO.unpack_from(self._data, _UNION)
        self._unfinished = True
        if count == 1:
            if direction == kvm.EXIT_IO_IN:
                self._answer, self._answer_at = PortRead(port, width), offset
                return self._answer
            return PortWrite(port, width, _INTEGERS[width].unpack_from(self._data, offset)[0])
        for at in range(offset, offset + width * count, width):
            if direction == kvm.EXIT_IO_IN:
                self._queue.append((PortRead(port, width), at))
            else:
                value = _INTEGERS[width].unpack_from(self._data, at)[0]
                self._queue.append((PortWrite(port, width, value), 0))
        return self._next_access()

    def _memory_access(self) -> Exit:
        address, data, length, is_write = _MMIO.unpack_from(self._data, _UNION)
        self._unfinished = True
        if length in _INTEGERS:
            if is_write:
                return MmioWrite(address, length, data & _MASKS[length])
            self._answer, self._answer_at = MmioRead(address, length), _MMIO_DATA
            return self._answer
        done = 0
        while done < length:
            # KVM splits at pages, so that 3 or 5 bytes may come; buses carry powers of two.
            width = 1 << (min(8, length - done).bit_length() - 1)
            if is_write:
                value = data >> done * 8 & _MASKS[width]
                self._queue.append((MmioWrite(address + done, width, value), 0))
            else:
                self._queue.append((MmioRead(address + done, width), _MMIO_DATA + done))
            done += width
        return self._next_access()

    def _next_access(self) -> Exit:
        access, at = self._queue.popleft()
        if at:
            self._answer, self._answer_at = access, at
        return access

    def _other_exit(self, reason: int) -> Exit | None:
        union = self._run.u
        if reason in (kvm.EXIT_IRQ_WINDOW_OPEN, kvm.EXIT_INTR, kvm.EXIT_SET_TPR):
            return None
        if reason == kvm.EXIT_DIRTY_RING_FULL:
            self._vm.collect_dirty()
            return None
        if reason == kvm.EXIT_HLT:
            return Halt()
        if reason == kvm.EXIT_IOAPIC_EOI:
            if self._vm.on_eoi is not None:
                self._vm.on_eoi(union.eoi.vector)
            return None
        if reason == kvm.EXIT_DEBUG:
            return DebugStop(union.debug.pc)
        if reason in (kvm.EXIT_X86_RDMSR, kvm.EXIT_X86_WRMSR):
            self._unfinished = True
            if reason == kvm.EXIT_X86_WRMSR:
                union.msr.error = 0
                return MsrWrite(union.msr.index, union.msr.data)
            self._answer = MsrRead(union.msr.index)
            return self._answer
        if reason in (kvm.EXIT_SHUTDOWN, kvm.EXIT_SYSTEM_EVENT):
            return Shutdown(self._last_words())
        raise self._failure(reason)

    def _last_words(self) -> str:
        """Return registers and code of a vCPU that shut down, as far as the host has them."""
        from ringzero.isa.x86.shutdown import describe

        state = self.get_state()
        if (state.rip, state.cs.base) == _RESET:
            # KVM resets the vCPU, because the processor leaves its state undefined (AMD APM
            # vol. 2, 15.14.3).
            return "this host's processor keeps no registers of it; --engine soft shows them"
        return describe(state, self._vm.memory)

    def _failure(self, reason: int) -> EngineError:
        union = self._run.u
        regs = self._fd.get(kvm.GET_REGS, kvm.Regs)
        what = f"exit {_EXIT_NAMES.get(reason, reason)}"
        if reason == kvm.EXIT_INTERNAL_ERROR:
            number = union.internal.suberror
            what = _INTERNAL.get(number, f"internal error {number}")
        elif reason == kvm.EXIT_FAIL_ENTRY:
            what = f"the hardware refused the guest's state ({union.fail_entry.reason:#x})"
        return EngineError(
            f"KVM stopped vCPU {self.index} at rip={regs.rip:#x}: {what}",
            hint="--engine soft runs the machine without KVM",
            vcpu=self.index,
            rip=hex(regs.rip),
        )

    def complete(self, value: int | None) -> None:
        answered, self._answer = self._answer, None
        if isinstance(answered, (PortRead, MmioRead)):
            width = answered.width
            word = (value or 0) & _MASKS[width]
            _INTEGERS[width].pack_into(self._data, self._answer_at, word)
        elif isinstance(answered, MsrRead):
            self._run.u.msr.error = value is None
            self._run.u.msr.data = (value or 0) & ((1 << 64) - 1)
        elif self._run.exit_reason == kvm.EXIT_X86_WRMSR:
            self._run.u.msr.error = value is None
        else:
            raise EngineError(f"vCPU {self.index} has no access that waits for an answer")

    # ---- stopping and waiting ---------------------------------------------

    def kick(self) -> None:
        self._kicks += 1
        with self._lock:
            self._kicked = True
            self._run.immediate_exit = 1
            if self._inside is not None:
                signal.pthread_kill(self._inside, KICK)
        self._wake.set()

    def _nudge(self) -> None:
        """Bring the vCPU out of the guest to look at its interrupts; no Kicked comes of it."""
        with self._lock:
            if self._inside is not None and self._inside != threading.get_ident():
                signal.pthread_kill(self._inside, KICK)
        self._wake.set()

    def wait(self, timeout: float | None) -> None:
        """After Halt (so without local APICs in the kernel)."""
        apic = self._interrupts
        end = None if timeout is None else time.monotonic() + timeout
        while apic is not None:
            self._wake.clear()
            if apic.pending() or self._kicked:
                return
            pause = None if end is None else end - time.monotonic()
            due = self._until_deadline(apic)
            if due is not None:
                if due <= 0:
                    apic.expire()
                    return
                pause = due if pause is None else min(pause, due)
            if pause is not None and pause <= 0:
                return
            self._wake.wait(pause)

    # ---- local APIC outside the kernel ------------------------------------

    def _interrupts_changed(self) -> None:
        self._nudge()

    def _until_deadline(self, apic: LocalApic) -> float | None:
        deadline = apic.deadline()
        if deadline is None:
            return None
        return (deadline - self._vm.read_counter()) / self._vm.counter_hz

    def _offer_interrupt(self, apic: LocalApic) -> None:
        due = self._until_deadline(apic)
        if due is not None and due <= 0:
            apic.expire()
        elif due is not None:
            if self._alarm is None:
                from ringzero.engine.kvm.alarm import Alarm

                self._alarm = Alarm(self._nudge, self._vm.on_fault)
            self._alarm.set(due)
        run = self._run
        takes = apic.pending() and not self._stepping
        if takes and run.ready_for_interrupt_injection and run.if_flag:
            vector = apic.acknowledge()
            if vector is not None:
                self._fd.set(kvm.INTERRUPT, kvm.Interrupt(vector))
                run.ready_for_interrupt_injection = 0
        run.request_interrupt_window = apic.pending() and not self._stepping
        self._task_priority = run.cr8 = apic.get_task_priority()

    # ---- state ------------------------------------------------------------

    def finish_access(self) -> None:
        """Let KVM complete the instruction whose access was reported last.

        Its state is only whole afterwards (api.rst, KVM_RUN). Raises EngineError
        while an answer or a report is outstanding.
        """
        if self._answer is not None or self._queue:
            raise EngineError(f"vCPU {self.index} is in the middle of an access")
        while self._unfinished:
            self._run.immediate_exit = 1
            try:
                more = self._enter_kernel()
            finally:
                with self._lock:
                    self._run.immediate_exit = self._kicked
            if more and (found := self._dispatch()) is not None:
                # The same instruction accesses more: that comes out of the next `run`.
                self._queue.appendleft((found, self._answer_at if self._answer else 0))
                self._answer = None
                raise EngineError(f"vCPU {self.index} is in the middle of an access")

    def get_state(self) -> CpuState:
        self.finish_access()
        vm = self._vm
        return translate.read(self._fd, vm.msr_indices, apic=vm.apics, xcrs=vm.xcrs)

    def set_state(self, state: CpuState) -> None:
        self._queue.clear()
        self._answer = None
        if self._unfinished:
            self.finish_access()
        vm = self._vm
        translate.write(self._fd, state, self._set_tsc, apic=vm.apics, xcrs=vm.xcrs)

    def debug(self, single_step: bool, breakpoints: tuple[int, ...] = ()) -> None:
        if len(breakpoints) > 4:
            raise EngineError("x86 has four hardware breakpoints")
        request = kvm.GuestDebug()
        if single_step or breakpoints:
            request.control = kvm.GUESTDBG_ENABLE
        self._stepping = single_step
        if single_step:
            # An interrupt that is taken first leads back to the instruction, and a breakpoint there
            # is met twice.
            known = self._vm.system.check(kvm.CAP_SET_GUEST_DEBUG2)
            request.control |= kvm.GUESTDBG_SINGLESTEP | known & kvm.GUESTDBG_BLOCKIRQ
        if breakpoints:
            request.control |= kvm.GUESTDBG_USE_HW_BP
            request.debugreg[7] = 0x400
        for number, address in enumerate(breakpoints):
            request.debugreg[number] = address
            request.debugreg[7] |= 2 << 2 * number  # global enable; type execute, length 1
        self._fd.set(kvm.SET_GUEST_DEBUG, request)

    def read_tsc(self) -> int:
        """Return the guest's time-stamp counter; the vCPU must not be running."""
        return self._fd.get_msrs([MSR_TSC])[MSR_TSC]

    def _set_tsc(self, value: int) -> None:
        """Set the time-stamp counter, alike on all vCPUs that are to show about the same.

        A plain write of the MSR is taken by KVM, within a second of what it
        expects, for an attempt to synchronize, and changes nothing; a write of 0
        it takes for a fresh start, and synchronizes the vCPUs itself.
        """
        old = self._fd.get_tsc_offset() if value else None
        if old is None:
            self._fd.set_msrs({MSR_TSC: value})
        else:
            wanted = old + value - self.read_tsc()
            self._fd.set_tsc_offset(self._vm.common_tsc_offset(self.index, wanted))
        if self.index == 0:
            self._vm.follow_tsc(self)

    def set_cpuid(self, leaves: Iterable[CpuidLeaf]) -> None:
        """Say what CPUID shows; before the first `run`."""
        listed = tuple(leaves)
        table = kvm.array_of(kvm.CpuidHeader, kvm.CpuidEntry, len(listed))
        table.header.nent = len(listed)
        for entry, leaf in zip(table.entries, listed, strict=True):
            entry.function, entry.index = leaf.function, leaf.index or 0
            entry.flags = 0 if leaf.index is None else kvm.CPUID_FLAG_SIGNIFCANT_INDEX
            entry.eax, entry.ebx, entry.ecx, entry.edx = leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
        self._fd.set(kvm.SET_CPUID2, table)

    def statistics(self) -> dict[str, int]:
        named = {f"exits_{_EXIT_NAMES.get(number, number)}": n for number, n in self._exits.items()}
        return {"exits": sum(self._exits.values()), "kicks": self._kicks, **named}

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.close()
        self._fd.close()
