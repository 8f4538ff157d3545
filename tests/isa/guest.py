"""A tiny guest for tests of privileged instructions: tables, stacks, and where a run ended.

64-bit mode, identity-mapped megabyte; its upper half is the user's. The
handler of every exception lies outside RAM, so that fetching it ends the run with the frame
on the handler's stack; a program ends itself with HLT.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from ringzero.core.memory import GuestMemory
from ringzero.engine.soft.x86.native import native_engine
from ringzero.engine.soft.x86.vm import X86SoftVm
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.architecture import EXTENDED_GUEST, X86_64
from ringzero.isa.x86.cpuid import CpuidLeaf, features_of, needs_extensions
from ringzero.isa.x86.state import CpuState, Segment, Table
from tests.oracle import assembler

PML4, PDPT, PD, PT = 0x1000, 0x2000, 0x3000, 0x4000
GDT, IDT, TSS, LDT = 0x8000, 0x9000, 0xA000, 0xB000
CODE, DATA, KERNEL_STACK = 0x10000, 0x18000, 0x20000
USER_CODE, USER_DATA, USER_STACK = 0x80000, 0x88000, 0x90000
# RSP0-2 and the interrupt stacks that the TSS names.
RSP0, RSP1, RSP2 = 0x30000, 0x34000, 0x38000
IST = tuple(0x40000 + n * 0x2000 for n in range(7))
# Handlers: mapped here, to where there is no RAM.
HANDLERS, HANDLER_SIZE, NOWHERE = 0x70000, 16, 0xF000_0000
SIZE = 1 << 20

# Selectors of the GDT that every guest begins with.
KERNEL_CS, KERNEL_DS, KERNEL_CS32, USER_CS32, USER_DS, USER_CS = 0x08, 0x10, 0x18, 0x23, 0x2B, 0x33
TSS_SELECTOR, LDT_SELECTOR, FREE = 0x40, 0x50, 0x60
DESCRIPTORS = {
    0x08: 0x00AF9B000000FFFF,
    0x10: 0x00CF93000000FFFF,
    0x18: 0x00CF9B000000FFFF,
    0x20: 0x00CFFB000000FFFF,
    0x28: 0x00CFF3000000FFFF,
    0x30: 0x00AFFB000000FFFF,
}
GDT_LIMIT = 0xFF

CR0 = x86.CR0_PE | x86.CR0_PG | x86.CR0_WP | x86.CR0_NE | x86.CR0_MP | x86.CR0_ET
CR4 = x86.CR4_PAE | x86.CR4_OSFXSR | x86.CR4_OSXMMEXCPT
EFER = x86.EFER_LME | x86.EFER_LMA | x86.EFER_NXE | x86.EFER_SCE

WITH_CODE = frozenset((8, 10, 11, 12, 13, 14, 17))


class QuietInterrupts:
    """A local APIC that keeps only CR8."""

    priority = 0
    nmi = False

    def pending(self) -> bool:
        return False

    def acknowledge(self) -> int | None:
        return None

    def nmi_pending(self) -> bool:
        return self.nmi

    def take_nmi(self) -> bool:
        waiting, self.nmi = self.nmi, False
        return waiting

    def deadline(self) -> int | None:
        return None

    def expire(self) -> None: ...

    def get_task_priority(self) -> int:
        return self.priority

    def set_task_priority(self, value: int) -> None:
        self.priority = value

    def raise_nmi(self) -> None:
        self.nmi = True
        self.wake()

    def on_change(self, wake) -> None:
        self.wake = wake


@functools.cache
def assemble(source: str, mode: int = 64) -> bytes:
    return assembler.assemble(source, mode)


def gate(
    target: int, selector: int = KERNEL_CS, kind: int = 0xE, dpl: int = 0, ist: int = 0
) -> bytes:
    """A 16-byte gate descriptor; `kind` with bit 8 (0x100) set is not present."""
    present = 0 if kind & 0x100 else 0x80
    low = (target & 0xFFFF) | selector << 16 | ist << 32 | (present | dpl << 5 | kind & 0x1F) << 40
    return struct.pack("<QQ", low | (target >> 16 & 0xFFFF) << 48, target >> 32)


def gate32(target: int, selector: int, kind: int = 0xE, dpl: int = 0) -> bytes:
    """An 8-byte gate descriptor of protected mode."""
    low = (target & 0xFFFF) | selector << 16 | (0x80 | dpl << 5 | kind) << 40
    return struct.pack("<Q", low | (target >> 16 & 0xFFFF) << 48)


def segment_descriptor(base: int, limit: int, access: int, flags: int = 0) -> int:
    """An 8-byte descriptor: access byte and the flags G, D, L, AVL as its upper nibble."""
    return (
        limit & 0xFFFF | (base & 0xFFFFFF) << 16 | access << 40
        | (limit >> 16 & 0xF) << 48 | flags << 52 | (base >> 24 & 0xFF) << 56
    )  # fmt: skip


@dataclass
class Ending:
    """How a run ended: HLT (`vector` None), a handler (its vector and frame), or shutdown (-1)."""

    vector: int | None
    cpu: Any
    frame: tuple[int, ...] = ()
    code: int | None = None
    exits: list[Any] = field(default_factory=list)

    @property
    def saved(self) -> dict[str, int]:
        return dict(zip(("rip", "cs", "rflags", "rsp", "ss"), self.frame, strict=False))

    def reg(self, number: int) -> int:
        return self.cpu.regs[number]


class Guest:
    """One vCPU and its memory.

    `entry` names the run loop; the translator translates from the first time on.
    """

    entry = "run_interpreter"
    alive: ClassVar[list[Guest]] = []

    def __init__(self, cpuid: list[CpuidLeaf] | None = None) -> None:
        self.memory = GuestMemory([(0, SIZE)])
        beyond = needs_extensions(features_of(cpuid or []))
        engine = native_engine(EXTENDED_GUEST if beyond else X86_64.name)
        self.vm = X86SoftVm(engine, self.memory, cpuid or [], 1_000_000_000)
        self.interrupts = QuietInterrupts()
        self.vcpu = self.vm.create_vcpu(0, self.interrupts)
        self.vcpu._enter = getattr(self.vm.engine, self.entry)
        self.vm.code.hot = 0
        self.cpu: Any = self.vcpu.cpu
        Guest.alive.append(self)
        self._tables()
        self.state = CpuState(
            rip=CODE,
            rflags=2,
            cs=Segment(KERNEL_CS, 0, 0xFFFFFFFF, 0xA9B),
            **{
                name: Segment(KERNEL_DS, 0, 0xFFFFFFFF, 0xC93)
                for name in ("ds", "es", "fs", "gs", "ss")
            },
            ldtr=Segment(),
            tr=Segment(TSS_SELECTOR, TSS, 0x67, 0x8B),
            gdtr=Table(GDT, GDT_LIMIT),
            idtr=Table(IDT, 0xFFF),
            cr0=CR0,
            cr3=PML4,
            cr4=CR4,
            efer=EFER,
        ).with_gpr(rsp=KERNEL_STACK)

    def close(self) -> None:
        """Give back what the host has too little of."""
        self.vm.close()

    def write(self, address: int, data: bytes) -> None:
        self.memory.write(address, data)

    def q(self, address: int, value: int) -> None:
        self.write(address, struct.pack("<Q", value))

    def read_q(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 8), "little")

    def _tables(self) -> None:
        self.q(PML4, PDPT | 7)
        self.q(PDPT, PD | 7)
        self.q(PD, PT | 7)
        for page in range(SIZE >> 12):
            self.q(PT + page * 8, page << 12 | (7 if page >= 0x80 else 3))
        self.q(PT + (HANDLERS >> 12) * 8, NOWHERE | 7)
        for selector, descriptor in DESCRIPTORS.items():
            self.q(GDT + selector, descriptor)
        self.q(GDT + TSS_SELECTOR, segment_descriptor(TSS, 0x67, 0x8B))
        for vector in range(256):
            self.gate(vector)
        self.write(TSS + 0x66, b"\xff\xff")  # no I/O permission bitmap
        for n, pointer in enumerate((RSP0, RSP1, RSP2)):
            self.q(TSS + 4 + 8 * n, pointer)
        for n, pointer in enumerate(IST):
            self.q(TSS + 0x24 + 8 * n, pointer)

    def gate(self, vector: int, target: int | None = None, **what: int) -> None:
        target = HANDLERS + vector * HANDLER_SIZE if target is None else target
        self.write(IDT + vector * 16, gate(target, **what))

    def become_user(self) -> None:
        """Start at privilege 3."""
        self.state = replace(
            self.state,
            rip=USER_CODE,
            cs=Segment(USER_CS, 0, 0xFFFFFFFF, 0xAFB),
            **{
                name: Segment(USER_DS, 0, 0xFFFFFFFF, 0xCF3)
                for name in ("ds", "es", "fs", "gs", "ss")
            },
        ).with_gpr(rsp=USER_STACK)

    def run(
        self,
        code: str | bytes = b"",
        *,
        mode: int = 64,
        answers: tuple[int | None, ...] = (),
        **regs: int,
    ) -> Ending:
        """Run code at the state's RIP to its end; `answers` are for the exits on the way."""
        data = assemble(code, mode) if isinstance(code, str) else code
        base = self.state.cs.base if mode == 16 else 0
        self.write(base + self.state.rip, data)
        if regs:
            self.state = self.state.with_gpr(**regs)
        self.vcpu.set_state(self.state)
        return self.go(list(answers))

    def go(self, answers: list[int | None]) -> Ending:
        exits = []
        for _ in range(1000):
            leave = self.vcpu.run()
            name = type(leave).__name__
            if name == "Halt":
                return Ending(None, self.cpu, exits=exits)
            if name == "Shutdown":
                return self._handler(exits)
            exits.append(leave)
            if answers:
                self.vcpu.complete(answers.pop(0))
            elif name.endswith("Read"):
                self.vcpu.complete(0)
        raise AssertionError("the guest does not end")

    def _handler(self, exits: list[Any]) -> Ending:
        vector, rest = divmod(self.cpu.rip - HANDLERS, HANDLER_SIZE)
        if rest or not 0 <= vector < 256:
            return Ending(-1, self.cpu, exits=exits)
        coded = vector in WITH_CODE
        stack = self.cpu.regs[x86.RSP]
        words = struct.unpack(f"<{5 + coded}Q", self.memory.read(stack, 40 + 8 * coded))
        return Ending(vector, self.cpu, words[coded:], words[0] if coded else None, exits=exits)
