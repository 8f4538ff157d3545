"""Tiny guests for the engine contract: assembled text, a machine state, and a run loop."""

from __future__ import annotations

import struct
import threading
import time
from dataclasses import dataclass, field, replace

from ringzero.core.memory import GuestMemory
from ringzero.engine.exits import Halt, Kicked, MmioRead, Shutdown
from ringzero.engine.x86 import MsrRead, MsrWrite, PortRead, PortWrite
from ringzero.isa.x86 import state as x86
from ringzero.isa.x86.architecture import X86_64
from ringzero.isa.x86.state import CpuState, Segment, Table, flat_segment
from tests.oracle.assembler import assemble

RAM = 1 << 20
CODE = 0x8000
HANDLERS = 0x9000
STACK = 0x7000
USER_STACK = 0x6800
GDT, IDT, TSS = 0x1000, 0x1100, 0x2200
TABLES = 0x10000
# Behind the RAM, and mapped by the long-mode tables.
MMIO = 0x10_0000
DONE = 0xF4
KERNEL_BASE = 0xFFFFFFFF80000000
CODE64, DATA, CODE32, USER_DATA, USER64, TSS_SELECTOR = 0x08, 0x10, 0x18, 0x23, 0x2B, 0x30
_GDT = struct.pack(
    "<8Q",
    0,
    0x00AF9B000000FFFF,
    0x00CF93000000FFFF,
    0x00CF9B000000FFFF,
    0x00CFF3000000FFFF,
    0x00AFFB000000FFFF,
    # A 64-bit TSS of 0x68 bytes at TSS, busy.
    0x0000_8B00_0000_0067 | TSS << 16,
    0,
)


def real_mode() -> CpuState:
    """16-bit code at CODE, all segments at 0."""
    flat = {name: replace(getattr(CpuState(), name), base=0) for name in ("ds", "es", "ss")}
    cs = Segment(0, 0, 0xFFFF, CpuState().cs.attributes)
    return replace(CpuState(), cs=cs, rip=CODE, **flat).with_gpr(rsp=STACK)


def protected_mode(*, paging: str = "") -> CpuState:
    """32-bit ring 0, flat; `paging` is "", "legacy" or "pae" (identity, first 4 MiB)."""
    data = flat_segment(DATA, code=False, bits=32)
    cr0 = x86.CR0_PE | x86.CR0_ET | x86.CR0_NE
    return replace(
        CpuState(),
        cs=flat_segment(CODE32, code=True, bits=32),
        ds=data,
        es=data,
        ss=data,
        fs=data,
        gs=data,
        gdtr=Table(GDT, len(_GDT) - 1),
        cr0=cr0 | (x86.CR0_PG if paging else 0),
        cr3=TABLES if paging else 0,
        cr4={"": 0, "legacy": 1 << 4, "pae": x86.CR4_PAE}[paging],
        rip=CODE,
    ).with_gpr(rsp=STACK)


def long_mode(*, ring: int = 0, base: int = 0, bits: int = 64) -> CpuState:
    """64-bit code (or 32-bit code in compatibility mode) over identity tables."""
    dpl = ring
    code = {(0, 64): CODE64, (3, 64): USER64, (0, 32): CODE32}[ring, bits]
    selector = USER_DATA if ring else DATA
    data = flat_segment(selector, code=False, dpl=dpl)
    return replace(
        CpuState(),
        cs=flat_segment(code, code=True, bits=bits, dpl=dpl),
        ds=data,
        es=data,
        ss=data,
        fs=data,
        gs=data,
        tr=Segment(TSS_SELECTOR, TSS, 0x67, 0x8B),
        ldtr=Segment(0, 0, 0xFFFF, 0x82),
        gdtr=Table(GDT, len(_GDT) - 1),
        idtr=Table(IDT, 0xFFF),
        cr0=x86.CR0_PE | x86.CR0_ET | x86.CR0_NE | x86.CR0_WP | x86.CR0_PG,
        cr3=TABLES,
        cr4=x86.CR4_PAE | x86.CR4_OSFXSR | x86.CR4_OSXMMEXCPT,
        efer=x86.EFER_LME | x86.EFER_LMA | x86.EFER_SCE,
        rip=base + CODE,
    ).with_gpr(rsp=base + (USER_STACK if ring else STACK))


class FakeApic:
    """LocalInterrupts with a plain queue of vectors and a settable deadline."""

    def __init__(self) -> None:
        self.vectors: list[int] = []
        self.priority = 0
        self.due: int | None = None
        self.due_vector = 0
        self.nmi = False
        self._wake = lambda: None

    def raise_vector(self, vector: int) -> None:
        self.vectors.append(vector)
        self._wake()

    def pending(self) -> bool:
        return any(vector >> 4 > self.priority for vector in self.vectors)

    def acknowledge(self) -> int | None:
        for vector in sorted(self.vectors, reverse=True):
            if vector >> 4 > self.priority:
                self.vectors.remove(vector)
                return vector
        return None

    def raise_nmi(self) -> None:
        self.nmi = True
        self._wake()

    def nmi_pending(self) -> bool:
        return self.nmi

    def take_nmi(self) -> bool:
        waiting, self.nmi = self.nmi, False
        return waiting

    def deadline(self) -> int | None:
        return self.due

    def expire(self) -> None:
        self.due = None
        self.vectors.append(self.due_vector)

    def get_task_priority(self) -> int:
        return self.priority

    def set_task_priority(self, value: int) -> None:
        self.priority = value
        self._wake()

    def arm(self, deadline: int, vector: int) -> None:
        self.due, self.due_vector = deadline, vector
        self._wake()

    def on_change(self, wake) -> None:
        self._wake = wake


@dataclass
class Guest:
    """One vCPU over 1 MiB of RAM; `run` records what it does until it ends."""

    vm: object
    memory: GuestMemory
    vcpu: object
    apic: FakeApic
    log: list = field(default_factory=list)
    reads: dict = field(default_factory=dict)

    def load(self, text: str, state: CpuState, mode: int = 64) -> None:
        self.memory.write(CODE, assemble(text, mode))
        self.vcpu.set_state(state)

    def on_vector(self, vector: int, text: str) -> None:
        """Install a 64-bit handler for `vector`, as an interrupt gate."""
        at = HANDLERS + 0x80 * self._handlers()
        self.memory.write(at, assemble(text, 64))
        low = at & 0xFFFF | CODE64 << 16 | (0x8E | 3 << 5) << 40 | (at >> 16 & 0xFFFF) << 48
        self.memory.write(IDT + 16 * vector, struct.pack("<QQ", low, at >> 32))

    def _handlers(self) -> int:
        count = getattr(self, "_count", 0)
        self._count = count + 1
        return count

    def step(self):
        """Run to the next exit, answer it, and return it."""
        event = self.vcpu.run()
        if isinstance(event, PortRead):
            self.vcpu.complete(self._answer(event.port, event.width))
        elif isinstance(event, MmioRead):
            self.vcpu.complete(self._answer(event.address, event.width))
        elif isinstance(event, MsrRead):
            self.vcpu.complete(self.reads.get(("msr", event.index)))
        elif isinstance(event, MsrWrite) and ("msr", event.index) not in self.reads:
            self.vcpu.complete(None)
        self.log.append(event)
        return event

    def _answer(self, key: int, width: int) -> int:
        value = self.reads.get(key, (1 << 8 * width) - 1)
        return value.pop(0) if isinstance(value, list) else value

    def run(self, seconds: float = 20):
        """Run to the end of the guest (a write to DONE, a halt or a shutdown) and return it."""
        end = time.monotonic() + seconds
        timer = threading.Timer(seconds, self.vcpu.kick)
        timer.start()
        try:
            while time.monotonic() < end:
                event = self.step()
                if isinstance(event, (Halt, Shutdown)):
                    return event
                if isinstance(event, PortWrite) and event.port == DONE:
                    return event
        finally:
            timer.cancel()
        raise AssertionError(f"the guest did not end; last: {self.log[-3:]}")

    def writes(self, kind=PortWrite) -> list[int]:
        """The values written so far by exits of `kind`, DONE left out."""
        return [e.value for e in self.log if isinstance(e, kind) and getattr(e, "port", 0) != DONE]

    def quiet(self) -> list:
        """The log without Kicked, which an engine may return at any time."""
        return [event for event in self.log if not isinstance(event, Kicked)]


def processors(engine, model="x86-64-v2", cpus=1, bounds=None):
    """What a machine on `engine` shows to its guest, within `bounds` or the engine's own."""
    return X86_64.identify(
        model, cpus=cpus, counter_hz=engine.counter_hz, bounds=bounds or engine.processor_bounds()
    )


def build(engine, model="x86-64-v2", supported=None, *, adopts=False) -> Guest:
    """Make a guest with tables for every mode in its memory.

    `supported` bounds its CPU's features, if not the engine itself. With `adopts` the engine is
    told that there is nothing to take over.
    """
    memory = GuestMemory([(0, RAM)])
    memory.write(GDT, _GDT)
    # RSP0 of the TSS.
    memory.write(TSS + 4, struct.pack("<Q", STACK))
    vm = engine.create_vm(memory, processors(engine, model, 1, supported))
    if adopts:
        vm.adopt(None)
    apic = FakeApic()
    return Guest(vm, memory, vm.create_vcpu(0, apic), apic)


def write_long_tables(memory: GuestMemory, *, at: int = TABLES) -> None:
    """Identity and KERNEL_BASE mappings of the first 4 MiB for user and supervisor."""
    flags = 7
    directory, pages = at + 0x1000, at + 0x2000
    memory.write(at, bytes(0x3000))
    memory.write_int(at, 8, directory | flags)
    memory.write_int(at + 8 * 511, 8, directory | flags)
    memory.write_int(directory, 8, pages | flags)
    memory.write_int(directory + 8 * 510, 8, pages | flags)
    memory.write_int(pages, 8, 1 << 7 | flags)
    memory.write_int(pages + 8, 8, 0x20_0000 | 1 << 7 | flags)


def write_legacy_tables(memory: GuestMemory) -> None:
    """A page directory with one 4 MiB page."""
    memory.write(TABLES, bytes(0x1000))
    memory.write_int(TABLES, 4, 1 << 7 | 7)


def write_pae_tables(memory: GuestMemory) -> None:
    """A pointer table and a directory with two 2 MiB pages."""
    memory.write(TABLES, bytes(0x2000))
    memory.write_int(TABLES, 8, (TABLES + 0x1000) | 1)
    memory.write_int(TABLES + 0x1000, 8, 1 << 7 | 7)
    memory.write_int(TABLES + 0x1008, 8, 0x20_0000 | 1 << 7 | 7)
