"""One x86 machine under the software engine: its memory as native code sees it, its code."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from ringzero.core.bus import Show
from ringzero.core.irq import LocalInterrupts
from ringzero.core.memory import PAGE_SHIFT, GuestMemory
from ringzero.engine import contract
from ringzero.engine.soft.code import CODE_SIZE, CodeArenas, SharedCode
from ringzero.engine.soft.contract import SoftVm
from ringzero.engine.soft.translations import Translations
from ringzero.engine.soft.x86.irqstatus import IrqStatuses, SharedStatus
from ringzero.engine.soft.x86.native import NativeEngine
from ringzero.engine.soft.x86.ports import Ports, Write
from ringzero.engine.soft.x86.transmit import SharedQueue, TransmitQueues
from ringzero.engine.soft.x86.vcpu import X86SoftVcpu
from ringzero.errors import EngineError
from ringzero.isa.exclusive import MAX_VCPUS, Exclusive
from ringzero.isa.x86.cpu import XCR0_SSE, XCR0_X87, CpuidEntry
from ringzero.isa.x86.cpuid import (
    AMD,
    IMMUNITIES,
    CpuidLeaf,
    features_of,
    find,
    for_vcpu,
    vendor_of,
)
from ringzero.isa.x86.irqstatus import IrqStatusTable
from ringzero.isa.x86.msrs import ARCH_CAPABILITIES
from ringzero.isa.x86.ports import PortTable
from ringzero.isa.x86.state import CpuState
from ringzero.isa.x86.transmit import TransmitTable
from ringzero.jit.tables import COUNTERS, FORM_LIMIT, CodeSpace
from ringzero.native.view import view_of
from ringzero.records import replace
from ringzero.settings import DEBUG

if TYPE_CHECKING:
    from ringzero.engine.soft.x86.reveal import Revealer
    from ringzero.engine.x86 import LocalApic

# MAXPHYADDR: as CPUID leaf 80000008h of the CPU models says.
PHYSICAL_BITS = 48
ANY_SUBLEAF = 0xFFFFFFFF
# Room for each at the next cache line.
_EXCLUSIVE, _IRQ_STATUS = Exclusive.size + 64, IrqStatusTable.size + 64
_TRANSMIT = TransmitTable.size + 64
# Translating costs about as much as interpreting three times.
HOT = 3
# The lowest level of RINGZERO_DEBUG that is about translated code.
LEAST_REVEALING = 2


class X86SoftVm(SoftVm[CpuState]):
    """Translates; its code is shared by all vCPUs."""

    def __init__(
        self, engine: NativeEngine, memory: GuestMemory, cpuid: Iterable[CpuidLeaf], tsc_hz: int
    ) -> None:
        super().__init__(memory, tsc_hz, lambda: engine.read_host_tsc(0))
        self.engine = engine
        self._leaves = tuple(cpuid)
        # Touched by what runs only, as most machines of a process are idle clones.
        parts = (
            *(COUNTERS, CodeSpace.size, PortTable.size, 4 * FORM_LIMIT),
            *(_EXCLUSIVE, _IRQ_STATUS, _TRANSMIT),
        )
        self._work = mmap.mmap(-1, sum(parts))
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._work))
        # Translated code as native code sees it: a view of a jit.tables.CodeSpace.
        self.code: Any = view_of(CodeSpace, address + COUNTERS)
        self.code.counters = address
        self.code.handled = address + sum(parts[:3])
        # How the vCPUs stop one another: a view of an isa.exclusive.Exclusive, at a multiple of 64.
        self.exclusive: Any = view_of(Exclusive, -(-(address + sum(parts[:4])) // 64) * 64)
        self.code.hot = HOT
        self.ports = Ports(address + COUNTERS + CodeSpace.size)
        table = -(-(address + sum(parts[:5])) // 64) * 64
        self.irq_status = IrqStatuses(engine, table, self._work)
        table = -(-(address + sum(parts[:6])) // 64) * 64
        self.transmit = TransmitQueues(engine, memory, table, self._work)
        self._arenas: CodeArenas | None = None
        self._translations: Translations | None = None
        # Describes translated blocks, where RINGZERO_DEBUG asks for that.
        self.revealer: Revealer | None = None
        self._tables: list[Any] = []
        # What the vCPUs of a clone take over of their originals', by their numbers.
        self._inherited: tuple[Any, ...] = ()
        memory.listen(self._written)

    def _make_vcpu(self, index: int, interrupts: LocalInterrupts) -> X86SoftVcpu:
        self._open_space(None)
        if index >= MAX_VCPUS:
            raise EngineError(
                f"the software engine runs at most {MAX_VCPUS} virtual CPUs",
                hint=f"start it with --cpus {MAX_VCPUS} or fewer",
            )
        # Boards of x86 give their vCPUs local APICs.
        inherited = self._inherited[index] if index < len(self._inherited) else None
        vcpu = X86SoftVcpu(self, index, cast("LocalApic", interrupts), inherited)
        self._set_cpuid(vcpu, for_vcpu(self._leaves, index))
        self.exclusive.cpus[self.exclusive.count] = vcpu.address
        self.exclusive.count += 1
        return vcpu

    # ---- ports ------------------------------------------------------------

    def gather_writes(
        self,
        port: bool,
        address: int,
        size: int,
        write: Write,
        *,
        prompt: bool = False,
        then: Callable[[], None] | None = None,
        changes: int | None = None,
        clears: int = 0,
        hold: Callable[[Callable[[int], None]], None] | None = None,
    ) -> bool:
        return port and self.ports.gather(
            address, size, write, then, changes=changes, clears=clears, hold=hold
        )

    def shadow_port(self, address: int, read: Callable[[], None] | None = None) -> Show | None:
        return self.ports.shadow(address, read)

    def share_status(self, status: int, acknowledge: int) -> SharedStatus | None:
        return self.irq_status.add(status, acknowledge)

    def drain_queue(
        self, address: int, number: int, ready: Callable[[], None]
    ) -> SharedQueue | None:
        return self.transmit.add(address, number, ready)

    def settle(self) -> None:
        self.transmit.deliver()
        self.ports.deliver()
        self.ports.finish()

    # ---- translated code --------------------------------------------------

    def _open_space(self, shared: SharedCode | None) -> None:
        if self._arenas is not None:
            return
        self._arenas = CodeArenas(self.code, self.memory.extent >> PAGE_SHIFT, shared)
        if self._arenas.main:
            self._translations = Translations(self.engine, self.code, CODE_SIZE)
            self._translations.load()
            self._arenas.owner = self._translations
        if DEBUG.get() >= LEAST_REVEALING:
            from ringzero.engine.soft.x86.reveal import Revealer, Wanted

            saved = self._translations.loaded if self._translations is not None else ()
            self.revealer = Revealer(
                self.engine, self.memory, self.code, self._arenas, saved, Wanted.from_settings()
            )

    def look(self) -> None:
        """See to the room for translated code after an exit."""
        arenas = self.arenas
        if arenas.is_short():
            with self.engine.stopped(self.exclusive.address):
                if not arenas.is_short():
                    return  # another vCPU's thread has done it
                if self._translations is not None and arenas.main:
                    self._translations.save(arenas.words, self.memory)
                arenas.look()

    def share(self) -> SharedCode:
        vcpus = tuple(found for vcpu in self._vcpus if (found := vcpu.share()) is not None)
        return replace(self.arenas.share(), vcpus=vcpus)

    def adopt(self, code: contract.SharedCode | None) -> None:
        if code is None:
            return
        if not isinstance(code, SharedCode):
            raise EngineError("the code to take over is another engine's")
        self._open_space(code)
        self._inherited = code.vcpus

    @contextmanager
    def translate_at_once(self) -> Iterator[None]:
        self.code.hot = 1
        try:
            yield
        finally:
            self.code.hot = HOT

    def code_pages(self) -> bytes:
        if self._translations is None:
            return b""
        return self._translations.known(self.arenas.words)

    def expect(self, known: bytes) -> bytes | None:
        arenas = self.arenas
        if self._translations is None or not arenas.main:
            return None
        return self._translations.expect(known, self.memory.host, arenas.words, arenas.sought)

    @property
    def arenas(self) -> CodeArenas:
        """Where translated code lies; there is none before the first vCPU."""
        if self._arenas is None:
            raise EngineError("the machine has no vCPU")
        return self._arenas

    def forget_counts(self) -> None:
        # It is memory that processes share, which MADV_DONTNEED would leave where it is.
        self._work.madvise(mmap.MADV_REMOVE, 0, COUNTERS)

    def describe_memory(self, cpu: Any) -> None:
        """Tell native code where RAM is: one region from 0, perhaps one above 4 GiB."""
        regions = self.memory.mapped
        if len(regions) > 2 or regions[0].base != 0:
            raise EngineError("the software engine takes RAM from 0, and one region above it")
        cpu.ram = self.memory.host.address
        cpu.ram_low_end = regions[0].size
        if len(regions) == 2:
            high = regions[1]
            cpu.ram_high_start, cpu.ram_high_end = high.base, high.end
            cpu.ram_high_addend = high.offset - high.base
        cpu.code_pages = self.arenas.words_address
        cpu.code_sought = self.arenas.sought_address
        cpu.physical_mask = (1 << PHYSICAL_BITS) - 1

    def _set_cpuid(self, vcpu: X86SoftVcpu, leaves: Iterable[CpuidLeaf]) -> None:
        rows = list(leaves)
        words = [
            word
            for leaf in rows
            for word in (
                leaf.function,
                ANY_SUBLEAF if leaf.index is None else leaf.index,
                leaf.eax,
                leaf.ebx,
                leaf.ecx,
                leaf.edx,
            )
        ]
        size = CpuidEntry.size // 4
        table = (ctypes.c_uint32 * (size * len(rows)))()
        for number, word in enumerate(words):
            table[number // 6 * size + number % 6] = word
        self._tables.append(table)
        vcpu.cpu.cpuid_table = ctypes.addressof(table)
        vcpu.cpu.cpuid_count = len(rows)
        extended = find(rows, 0xD)
        vcpu.cpu.xcr0_mask = extended.eax if extended is not None else XCR0_X87 | XCR0_SSE
        vcpu.cpu.is_amd = int(vendor_of(rows) == AMD)
        if features_of(rows) >= IMMUNITIES:
            vcpu.cpu.arch_capabilities = ARCH_CAPABILITIES

    def _written(self, gpa: int, count: int) -> None:
        """Drop translations of pages that a device wrote to."""
        if count <= 0 or not self._vcpus:
            return
        offset = self.memory.offset_of(gpa, count)
        first, last = offset >> PAGE_SHIFT, (offset + count - 1) >> PAGE_SHIFT
        self.engine.written(self._vcpus[0].address, first, last + 1 - first)

    def close(self) -> None:
        if self.revealer is not None and self._vcpus:
            self.revealer.look(self._vcpus[0].cpu)
        self.irq_status.close()
        super().close()
        if self._arenas is None:
            return
        if self._translations is not None and self._arenas.main:
            self._translations.save(self._arenas.words, self.memory)
        self._arenas.close()
