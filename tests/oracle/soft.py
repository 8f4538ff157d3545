"""ringzero's own software engine as an executor of user-mode cases.

The guest is a kernel of page tables and descriptor tables only: each
exception's handler lies in memory that is not RAM, so that fetching its first
instruction ends the run, with the exception's frame on the kernel stack.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

from ringzero.core.memory import GuestMemory
from ringzero.engine.soft.x86.native import native_engine
from ringzero.engine.soft.x86.vcpu import X86SoftVcpu
from ringzero.engine.soft.x86.vm import X86SoftVm
from ringzero.isa import execution
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.architecture import EXTENDED_GUEST, X86_64
from ringzero.isa.x86.cpu import Cpu
from tests.oracle.model import (
    CODE_BASE,
    CODE_SIZE,
    CRASHED,
    DATA_BASE,
    FIXED_FLAGS,
    FS_BASE,
    GS_BASE,
    TIMED_OUT,
    Case,
    Outcome,
    State,
    changed_lines,
    fx_image_of_slots,
    initial_memory,
)

TABLES, GDT, IDT, TSS, STACK_TOP = 0x1000, 0x8000, 0x9000, 0xA000, 0xC000
CODE, DATA = 0x10000, 0x20000
# A guest-physical address beyond RAM, and where handlers appear to lie.
NOWHERE, HANDLERS = 0xF000_0000, 0x50000
HANDLER_SIZE = 16
P, W, U, NX = 1, 2, 4, 1 << 63
_WITH_CODE = frozenset((8, 10, 11, 12, 13, 14, 17))
_CS = {64: 0x33, 32: 0x23}
# Attributes as in Cpu.seg: present, DPL 3, code or data, accessed; L or D, and G.
_CODE = {64: 0xFB | x86.ATTR_L | x86.ATTR_G, 32: 0xFB | x86.ATTR_DB | x86.ATTR_G}
_DATA = 0xF3 | x86.ATTR_DB | x86.ATTR_G
# Registers that every case sets or reads.
_PER_CASE = (
    "rip", "rflags", "cc_op", "cc_src", "fcw", "fsw", "ftop", "ftags", "mxcsr", "fpu_opcode",
    "fpu_ip", "fpu_dp", "cpl", "mode", "segmented", "tlb", "fault_vector", "delivering",
    "count_instructions", "budget", "slice", "deadline", "cr2",
)  # fmt: skip
_REGS, _FPR, _XMM = (Cpu.offset_of(name) for name in ("regs", "fpr", "xmm"))
_REGS_SIZE = 16 * 8
_GPRS, _X87 = struct.Struct("<16Q"), struct.Struct("<HHB")
# Of eight x87 registers in slots of 16 bytes, the bits that they have.
_ST_BITS = int.from_bytes((b"\xff" * 10).ljust(16, b"\0") * 8, "little")
# Instructions in a slice, and the time in TSC ticks after which a case counts as endless.
LIMIT = 100_000
PATIENCE = 1_000_000_000


class NoInterrupts:
    """A local APIC that never has anything to say."""

    def pending(self) -> bool:
        return False

    def acknowledge(self) -> int | None:
        return None

    def nmi_pending(self) -> bool:
        return False

    def take_nmi(self) -> bool:
        return False

    def deadline(self) -> int | None:
        return None

    def expire(self) -> None: ...

    def get_task_priority(self) -> int:
        return 0

    def set_task_priority(self, value: int) -> None: ...

    def on_change(self, wake: Callable[[], None]) -> None: ...


class Soft:
    """Runs cases on one vCPU; `entry` names the run loop (interpreter or translator).

    `guest` is that of the compiled engine; with one beyond x86-64-v2 user code has AVX.
    """

    def __init__(self, entry: str = "run_interpreter", guest: str = X86_64.name) -> None:
        self.name = entry.removeprefix("run_")
        engine = native_engine(guest)
        self.memory = GuestMemory([(0, 1 << 20)])
        self.vm = X86SoftVm(engine, self.memory, [], 1_000_000_000)
        vcpu = self.vm.create_vcpu(0, NoInterrupts())
        assert isinstance(vcpu, X86SoftVcpu)
        self.vcpu = vcpu
        self.cpu = self.vcpu.cpu
        self.vm.code.hot = 1
        self._enter = getattr(engine, entry)
        self._raw = {name: self._field(name) for name in _PER_CASE}
        self._build_tables()
        if guest != X86_64.name:
            self.cpu.cr4 |= x86.CR4_OSXSAVE
            self.cpu.xcr0 = self.cpu.xcr0_mask = x86.XCR0_X87 | x86.XCR0_SSE | x86.XCR0_AVX
        self._users = {mode: self._user_segments(mode) for mode in (64, 32)}

    def run(self, cases: list[Case]) -> list[Outcome]:
        return [self._run(case) for case in cases]

    # --- the guest around a case ---

    def _build_tables(self) -> None:
        write = self.memory.write_int
        tables = [TABLES + n * 0x1000 for n in range(6)]
        pml4, pdpt, pd, low, code, data = tables
        write(pml4, 8, pdpt | P | W | U)
        write(pdpt, 8, pd | P | W | U)
        write(pd, 8, low | P | W | U)
        for page in range(0x40):
            write(low + page * 8, 8, page << 12 | P | W)
        write(low + (HANDLERS >> 12) * 8, 8, NOWHERE | P)
        write(pd + (CODE_BASE >> 21) * 8, 8, code | P | W | U)
        write(pd + (DATA_BASE >> 21) * 8, 8, data | P | W | U)
        for page in range(CODE_SIZE >> 12):
            write(code + page * 8, 8, CODE + (page << 12) | P | W | U)
        for page in range(5):
            write(data + page * 8, 8, DATA + (page << 12) | P | U | NX | (W if page < 4 else 0))
        # Selector 8: 64-bit kernel code; 0x23, 0x33, 0x2B: user.
        for number, descriptor in (
            (1, 0x00AF9B000000FFFF),
            (4, 0x00CFFB000000FFFF),
            (5, 0x00CFF3000000FFFF),
            (6, 0x00AFFB000000FFFF),
        ):
            write(GDT + number * 8, 8, descriptor)
        for vector in range(256):
            target = HANDLERS + vector % 256 * HANDLER_SIZE
            low_half = target & 0xFFFF | 8 << 16 | 0xEE << 40 | (target >> 16 & 0xFFFF) << 48
            write(IDT + vector * 16, 8, low_half)
        write(TSS + 4, 8, STACK_TOP)
        write(TSS + 0x66, 2, 0xFFFF)  # no port is free for user code
        cpu = self.cpu
        cpu.gdt_base, cpu.gdt_limit = GDT, 0x7F
        cpu.idt_base, cpu.idt_limit = IDT, 0xFFF
        cpu.cr0 = x86.CR0_PE | x86.CR0_PG | x86.CR0_WP | x86.CR0_NE | x86.CR0_MP | x86.CR0_AM
        cpu.cr3 = pml4
        cpu.cr4 = x86.CR4_PAE | x86.CR4_OSFXSR | x86.CR4_OSXMMEXCPT
        cpu.efer = x86.EFER_LME | x86.EFER_LMA | x86.EFER_NXE
        cpu.dr[7] = 0x400
        self._segment(x86.TR, 0x40, TSS, 0x67, 0x8B)

    def _segment(self, number: int, selector: int, base: int, limit: int, attributes: int) -> None:
        segment = self.cpu.seg[number]
        segment.selector, segment.base = selector, base
        segment.limit, segment.attributes = limit, attributes

    def _field(self, name: str) -> Any:
        """A register of the vCPU as a ctypes value, found once for all instances."""
        member = Cpu.fields[name]
        kind = getattr(ctypes, f"c_uint{member.kind.bits}")
        return kind.from_address(self.vcpu.address + member.offset)

    def _enter_user(self, mode: int) -> None:
        raw = self._raw
        raw["cpl"].value = 3
        raw["mode"].value = x86.MODE_64 if mode == 64 else x86.MODE_32
        raw["segmented"].value = 0
        image = self._users[mode]
        ctypes.memmove(self.vcpu.address + Cpu.offset_of("seg"), image, len(image))

    def _user_segments(self, mode: int) -> bytes:
        """The segment registers of a user program, as the vCPU keeps them."""
        self._segment(x86.CS, _CS[mode], 0, 0xFFFFFFFF, _CODE[mode])
        for number in (x86.DS, x86.ES, x86.SS):
            self._segment(number, 0x2B, 0, 0xFFFFFFFF, _DATA)
        self._segment(x86.FS, 0x2B, FS_BASE, 0xFFFFFFFF, _DATA)
        self._segment(x86.GS, 0x2B, GS_BASE, 0xFFFFFFFF, _DATA)
        start, end = Cpu.offset_of("seg", x86.ES), Cpu.offset_of("seg", x86.LDTR)
        return ctypes.string_at(self.vcpu.address + start, end - start)

    # --- one case ---

    def _run(self, case: Case) -> Outcome:
        code, data = initial_memory(case)
        self.memory.view(CODE, len(code))[:] = bytes(code)
        self.memory.mark_written(CODE, len(code))
        self.memory.view(DATA, len(data))[:] = bytes(data)
        cpu = self.cpu
        self._enter_user(case.mode)
        self._load(case.state)
        checked = case.state.rflags & x86.AC
        self._raw["tlb"].value = cpu.tlb_checked if checked else cpu.tlb_user
        raw = self._raw
        raw["fault_vector"].value = raw["delivering"].value = 0
        start = raw["count_instructions"].value
        raw["budget"].value = raw["slice"].value = LIMIT
        raw["deadline"].value = self.vm.read_counter() + PATIENCE
        while (kind := self._enter(self.vcpu.address)) == x86.EXIT_GATHERED:
            self.vm.look()  # saved translations fill more than half of the arena
        if kind == execution.EXIT_TIMER:
            return Outcome(case.state, TIMED_OUT)
        vector, where = divmod(raw["rip"].value - HANDLERS, HANDLER_SIZE)
        if kind != execution.EXIT_SHUTDOWN or where or not 0 <= vector < 256:
            return Outcome(case.state, CRASHED, kind, start)
        return self._outcome(vector, code, data)

    def _load(self, state: State) -> None:
        raw = self._raw
        address = self.vcpu.address
        ctypes.memmove(address + _REGS, state.raw, _REGS_SIZE)
        raw["rip"].value = state.rip
        flags = state.rflags
        raw["rflags"].value = flags & ~x86.ARITHMETIC_FLAGS
        raw["cc_op"].value = 0
        raw["cc_src"].value = flags & x86.ARITHMETIC_FLAGS
        fx = state.fxsave
        fcw, fsw, ftw = _X87.unpack_from(fx)
        top = fsw >> 11 & 7
        raw["fcw"].value = fcw
        raw["fsw"].value = fsw & ~0x3800
        raw["ftop"].value = top
        raw["ftags"].value = ftw
        raw["mxcsr"].value = state.mxcsr
        raw["fpu_opcode"].value = raw["fpu_ip"].value = raw["fpu_dp"].value = 0
        # The vCPU has them by physical number, an image by their distance from the top.
        first = 160 - 16 * top
        ctypes.memmove(address + _FPR, fx[first:160] + fx[32:first], 128)
        ctypes.memmove(address + _XMM, fx[160:416], 256)

    def _outcome(self, vector: int, code: bytearray, data: bytearray) -> Outcome:
        raw = self._raw
        pushed = 6 if vector in _WITH_CODE else 5
        frame = struct.unpack(f"<{pushed}Q", self.memory.read(STACK_TOP - 8 * pushed, 8 * pushed))
        error = frame[0] if pushed == 6 else 0
        rip, _cs, rflags, rsp, _ss = frame[pushed - 5 :]
        address = self.vcpu.address
        gprs = list(_GPRS.unpack(ctypes.string_at(address + _REGS, _REGS_SIZE)))
        gprs[4] = rsp
        top = raw["ftop"].value
        physical = ctypes.string_at(address + _FPR, 128)
        st = int.from_bytes(physical[16 * top :] + physical[: 16 * top], "little") & _ST_BITS
        image = fx_image_of_slots(
            raw["fcw"].value,
            (raw["fsw"].value | top << 11) & 0xFFFF,
            raw["ftags"].value,
            raw["mxcsr"].value,
            st.to_bytes(128, "little"),
            ctypes.string_at(address + _XMM, 256),
        )
        state = State.build(gprs, rip, rflags & ~0x10000 | FIXED_FLAGS, image)
        memory = changed_lines(CODE_BASE, code, self.memory.read(CODE, len(code)))
        memory += changed_lines(DATA_BASE, data, self.memory.read(DATA, len(data)))
        cr2 = raw["cr2"].value if vector == 14 else 0
        return Outcome(state, vector, error, cr2, tuple(memory))


def interpreter() -> Soft:
    """The interpreter alone."""
    return Soft("run_interpreter")


def translator() -> Soft:
    """The translator, which translates every block before it runs."""
    return Soft("run_translator")


def extended_interpreter() -> Soft:
    """The interpreter of an engine with all that is beyond x86-64-v2."""
    return Soft("run_interpreter", EXTENDED_GUEST)


def extended_translator() -> Soft:
    """The translator of such an engine."""
    return Soft("run_translator", EXTENDED_GUEST)
