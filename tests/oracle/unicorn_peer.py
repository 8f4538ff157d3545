"""Unicorn as an oracle: user-mode cases like the host, and whole systems, which it cannot show.

Unicorn (QEMU 5's TCG) does not deliver exceptions through the IDT: it stops at
the first one. So a `SystemCase` runs supervisor code until an exception or HLT
and shows which it was, with error code and CR2, before delivery. SYSCALL is a
NOP to Unicorn, and it stops with a crash of the process now and then.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import unicorn
from unicorn import x86_const as x86

from tests.oracle.assembler import assemble
from tests.oracle.model import (
    CODE_BASE,
    CODE_SIZE,
    CRASHED,
    DATA_BASE,
    DATA_SIZE,
    FS_BASE,
    GPR_NAMES,
    GS_BASE,
    INITIAL_DATA,
    PAGE,
    PF,
    RO_BASE,
    RO_SIZE,
    TIMED_OUT,
    UD,
    Case,
    Outcome,
    State,
    changed_lines,
    fx_image,
    initial_memory,
)

_GPRS: Final = tuple(getattr(x86, "UC_X86_REG_" + name.upper()) for name in GPR_NAMES)
_REGISTERS: Final = (*_GPRS, x86.UC_X86_REG_RIP, x86.UC_X86_REG_EFLAGS)
_RF: Final = 0x10000
_WITH_ERROR_CODE: Final = frozenset((8, 10, 11, 12, 13, 14, 17))
_HEAD: Final = struct.Struct("<18Q")
_SELECTORS: Final = tuple(
    getattr(x86, f"UC_X86_REG_{name}") for name in ("CS", "SS", "DS", "ES", "FS", "GS")
)
_USER_CS: Final = {64: 0x33, 32: 0x23}
_NOWHERE: Final = 0xFFFF_FFFF_FFFF_FFF0
_MSR_EFER, _MSR_FS_BASE, _MSR_GS_BASE = 0xC000_0080, 0xC000_0100, 0xC000_0101
_STATE_SPAN: Final = 8192
"""More than the part of `CPUX86State` that holds the error code."""
_ZMM: Final = 64
"""Distance between vector registers in `CPUX86State`."""
_X87_HEAD: Final = struct.Struct("<IHH8B4x")
"""fpstt, fpus, fpuc, fptags: they lie right before the x87 registers."""
_LARGEST_HEAP: Final = 4 << 30
"""Mappings above this are code buffers and guest memory."""

STEP_LIMIT: Final = 20_000
"""Instructions after which a one-instruction case has gone astray."""
TIME_LIMIT: Final = 10_000_000
"""Microseconds for a program or a system case."""

EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1 << 0, 1 << 8, 1 << 10, 1 << 11
CR0_PE, CR0_MP, CR0_ET, CR0_NE, CR0_WP, CR0_AM, CR0_PG = (1 << n for n in (0, 1, 4, 5, 16, 18, 31))
CR4_PAE, CR4_PGE, CR4_OSFXSR, CR4_OSXMMEXCPT = (1 << n for n in (5, 7, 9, 10))
CR4_PCIDE, CR4_SMEP, CR4_SMAP = (1 << n for n in (17, 20, 21))
CR0_LONG: Final = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG
CR4_LONG: Final = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT
EFER_LONG: Final = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE

PRESENT, WRITABLE, USER, ACCESSED, DIRTY, HUGE = (1 << n for n in (0, 1, 2, 5, 6, 7))
NX: Final = 1 << 63

GDT: Final = (
    0,
    0x00AF9B000000FFFF,  # 08 kernel code, 64-bit
    0x00CF93000000FFFF,  # 10 kernel data
    0x00CF9B000000FFFF,  # 18 kernel code, 32-bit
    0x00CFFB000000FFFF,  # 23 user code, 32-bit    (Linux's selectors from here on)
    0x00CFF3000000FFFF,  # 2b user data
    0x00AFFB000000FFFF,  # 33 user code, 64-bit
)
"""Flat descriptors, accessed bits set."""


@dataclass(frozen=True, slots=True)
class SystemCase:
    """Supervisor code from a full machine state.

    Starts at `rip` in 64-bit mode at privilege 0 with CS = 08 and SS, DS, ES =
    10, which the GDT at `gdt_base` must hold; everything else that the test
    needs (segment loads, IRETQ to user mode, ...) the program itself does.
    `memory` is physical; `ram` bytes of it start at 0, zeroed.
    """

    rip: int
    cr3: int
    memory: tuple[tuple[int, bytes], ...]
    gpr: Mapping[str, int] = field(default_factory=dict)
    rflags: int = 0x2
    cr0: int = CR0_LONG
    cr4: int = CR4_LONG
    efer: int = EFER_LONG
    gdt_base: int = 0
    gdt_limit: int = 0
    msrs: Mapping[int, int] = field(default_factory=dict)
    ram: int = 1 << 20


@dataclass(frozen=True, slots=True)
class SystemOutcome:
    """The machine when a `SystemCase` ended: `vector` None is HLT.

    `segments` holds the selectors of CS, SS, DS, ES, FS, GS. `memory` holds the
    changed 64-byte lines of RAM.
    """

    vector: int | None
    error_code: int
    cr2: int
    gpr: tuple[int, ...]
    rip: int
    rflags: int
    segments: tuple[int, ...]
    fs_base: int
    gs_base: int
    memory: tuple[tuple[int, bytes], ...]


class _Core:
    """One Unicorn CPU that stops at the first exception and tells which."""

    def __init__(self) -> None:
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.uc.ctl_set_cpu_model(x86.UC_CPU_X86_SKYLAKE_CLIENT)
        self.uc.ctl_set_tlb_mode(unicorn.UC_TLB_CPU)
        self.vector: int | None = None
        self.error_code = 0
        self.cr2 = 0
        self._error_code_at = self._xmm_at = self._x87_at = 0
        self.uc.hook_add(unicorn.UC_HOOK_INTR, self._on_exception)

    def _on_exception(self, uc: Any, vector: int, _data: object) -> None:
        if self.vector is None:
            self.vector = vector
            self.cr2 = uc.reg_read(x86.UC_X86_REG_CR2)
            if vector in _WITH_ERROR_CODE and self._error_code_at:
                self.error_code = ctypes.c_uint32.from_address(self._error_code_at).value
        uc.emu_stop()

    def set_long_mode(self, cr0: int, cr3: int, cr4: int, efer: int) -> None:
        """Control registers, in an order in which each is valid."""
        uc = self.uc
        uc.reg_write(x86.UC_X86_REG_CR3, cr3)
        uc.reg_write(x86.UC_X86_REG_CR4, cr4)
        self.write_msr(_MSR_EFER, efer)
        uc.reg_write(x86.UC_X86_REG_CR0, cr0)

    def set_segments(self, gdt_base: int, gdt_limit: int) -> None:
        """GDTR, and the kernel's selectors."""
        uc = self.uc
        uc.reg_write(x86.UC_X86_REG_GDTR, (0, gdt_base, gdt_limit, 0))
        uc.reg_write(x86.UC_X86_REG_CS, 0x08)
        for register in (x86.UC_X86_REG_SS, x86.UC_X86_REG_DS, x86.UC_X86_REG_ES):
            uc.reg_write(register, 0x10)

    def write_msr(self, index: int, value: int) -> None:
        self.uc.reg_write(x86.UC_X86_REG_MSR, (index, value))

    def start(self, rip: int, count: int = 0) -> bool:
        """Run until an exception or HLT; false if it did not end by itself."""
        self.vector = None
        self.error_code = 0
        self.cr2 = 0
        try:
            self.uc.emu_start(rip, _NOWHERE, TIME_LIMIT if not count else 0, count)
        except unicorn.UcError as error:
            if error.errno == unicorn.UC_ERR_INSN_INVALID and self.vector is None:
                self.vector = UD
            return self.vector is not None
        return True

    def look_inside(self, code_at: int) -> None:
        """Learn where `CPUX86State` keeps what Unicorn has no (quick) name for.

        The CPU state is found in this process by its register contents, the
        error code by running two faulting selector loads at `code_at`, the
        vector and x87 registers by contents again.
        """
        uc = self.uc
        state_at = self._find_registers()
        candidates: set[int] | None = None
        clean = uc.context_save()
        for selector in (0x1234, 0x2240):
            seen = b""

            def look(_uc: Any, _vector: int, _data: object) -> None:
                nonlocal seen
                seen = ctypes.string_at(state_at, _STATE_SPAN)

            hook = uc.hook_add(unicorn.UC_HOOK_INTR, look)
            uc.context_restore(clean)
            uc.mem_write(code_at, assemble("mov ds, ecx; hlt"))
            uc.ctl_flush_tb()
            uc.reg_write(x86.UC_X86_REG_RCX, selector | 1)
            self.start(code_at)
            uc.hook_del(hook)
            value = selector.to_bytes(4, "little")
            found = {i for i in range(0, len(seen), 4) if seen[i : i + 4] == value}
            candidates = found if candidates is None else candidates & found
        pattern = os.urandom(16)
        uc.reg_write(x86.UC_X86_REG_XMM0, int.from_bytes(pattern, "little"))
        uc.reg_write(x86.UC_X86_REG_FP0, struct.unpack("<QH", pattern[:10]))
        seen = ctypes.string_at(state_at, _STATE_SPAN)
        xmm = seen.find(pattern)
        x87 = seen.replace(pattern, bytes(16)).find(pattern[:10])
        uc.context_restore(clean)
        uc.ctl_flush_tb()
        if not candidates or xmm < 0 or x87 < 0:
            raise RuntimeError("Unicorn's CPU state is not laid out as expected")
        self._error_code_at = state_at + min(candidates)
        self._xmm_at = state_at + xmm
        self._x87_at = state_at + x87

    def fxsave(self) -> bytes:
        """The FXSAVE64 image in `State`'s normal form."""
        top, fsw, fcw, *empty = _X87_HEAD.unpack(
            ctypes.string_at(self._x87_at - _X87_HEAD.size, _X87_HEAD.size)
        )
        physical = ctypes.string_at(self._x87_at, 128)
        vectors = ctypes.string_at(self._xmm_at, 16 * _ZMM)
        slots = (((top + i) & 7) * 16 for i in range(8))
        return fx_image(
            fcw=fcw,
            fsw=fsw & ~0x3800 | top << 11,
            ftw=sum(1 << i for i in range(8) if not empty[i]),
            mxcsr=self.uc.reg_read(x86.UC_X86_REG_MXCSR),
            st=[physical[slot : slot + 10] for slot in slots],
            xmm=[vectors[i * _ZMM : i * _ZMM + 16] for i in range(16)],
        )

    def _find_registers(self) -> int:
        values = [int.from_bytes(os.urandom(8), "little") for _ in _GPRS]
        self.uc.reg_write_batch(list(zip(_GPRS, values, strict=True)))
        pattern = struct.pack("<16Q", *values)
        addresses = []
        with Path("/proc/self/mem").open("rb", 0) as memory:
            for line in Path("/proc/self/maps").read_text().splitlines():
                span, rights = line.split()[:2]
                start, end = (int(part, 16) for part in span.split("-"))
                if rights != "rw-p" or end - start > _LARGEST_HEAP:
                    continue
                memory.seek(start)
                try:
                    content = memory.read(end - start)
                except OSError:
                    # A mapping of what is no longer there, by an earlier test.
                    continue
                at = content.find(pattern)
                while at >= 0:
                    addresses.append(start + at)
                    at = content.find(pattern, at + 1)
        self.uc.reg_write(x86.UC_X86_REG_RAX, 0x5EED)
        for address in addresses:
            if ctypes.c_uint64.from_address(address).value == 0x5EED:
                return address
        raise RuntimeError("Unicorn's CPU state is not where it is looked for")


def _table(entries: Mapping[int, int]) -> bytes:
    page = bytearray(PAGE)
    for index, entry in entries.items():
        struct.pack_into("<Q", page, 8 * index, entry)
    return bytes(page)


_LOAD: Final = """
    fxrstor64 [rbp + 144]
    lea rsp, [rbp + 0x400]
    mov eax, 0x2b
    mov ds, eax
    mov es, eax
    mov rax, [rbp]
    mov rcx, [rbp + 8]
    mov rdx, [rbp + 16]
    mov rbx, [rbp + 24]
    mov rsi, [rbp + 48]
    mov rdi, [rbp + 56]
    mov r8, [rbp + 64]
    mov r9, [rbp + 72]
    mov r10, [rbp + 80]
    mov r11, [rbp + 88]
    mov r12, [rbp + 96]
    mov r13, [rbp + 104]
    mov r14, [rbp + 112]
    mov r15, [rbp + 120]
    mov rbp, [rbp + 40]
    iretq
"""
"""Loads `State.raw` at RBP and enters user mode through the IRETQ frame behind it."""

_STUB: Final = 0x3000_0000
_SAVE: Final = _STUB + PAGE
_GDT_AT: Final = _STUB + 2 * PAGE
_TABLES: Final = 0x3001_0000


class Unicorn:
    """Runs user-mode cases on Unicorn in user mode under real page tables."""

    name = "unicorn"

    def __init__(self) -> None:
        core = self._core = _Core()
        uc = core.uc
        uc.mem_map(CODE_BASE, CODE_SIZE)
        uc.mem_map(DATA_BASE, DATA_SIZE + RO_SIZE)
        uc.mem_map(_STUB, 4 * PAGE)
        uc.mem_map(_TABLES, 8 * PAGE)
        self._write_tables()
        uc.mem_write(RO_BASE, INITIAL_DATA[DATA_SIZE:])
        uc.mem_write(_GDT_AT, struct.pack(f"<{len(GDT)}Q", *GDT))
        core.set_long_mode(CR0_LONG, _TABLES, CR4_LONG, EFER_LONG)
        core.set_segments(_GDT_AT, 8 * len(GDT) - 1)
        core.look_inside(_STUB)
        uc.mem_write(_STUB, assemble(_LOAD))
        core.write_msr(_MSR_FS_BASE, FS_BASE)
        core.write_msr(_MSR_GS_BASE, GS_BASE)
        self._clean = uc.context_save()

    def _write_tables(self) -> None:
        """One level-1 table per 2 MiB region in use; identity mapping."""
        leaf = PRESENT | ACCESSED | DIRTY
        regions = {
            CODE_BASE: dict.fromkeys(range(CODE_SIZE // PAGE), leaf | USER | WRITABLE),
            DATA_BASE: dict.fromkeys(range(DATA_SIZE // PAGE), leaf | USER | WRITABLE | NX)
            | {DATA_SIZE // PAGE: leaf | USER | NX},
            _STUB: dict.fromkeys(range(4), leaf | WRITABLE),
        }
        pointer = PRESENT | WRITABLE | USER | ACCESSED
        directory = {}
        for number, (base, pages) in enumerate(regions.items()):
            at = _TABLES + (3 + number) * PAGE
            self._core.uc.mem_write(at, _table({i: base + i * PAGE | f for i, f in pages.items()}))
            directory[base >> 21 & 511] = at | pointer
        uc = self._core.uc
        uc.mem_write(_TABLES, _table({0: _TABLES + PAGE | pointer}))
        uc.mem_write(_TABLES + PAGE, _table({0: _TABLES + 2 * PAGE | pointer}))
        uc.mem_write(_TABLES + 2 * PAGE, _table(directory))

    def run(self, cases: list[Case]) -> list[Outcome]:
        return [self._run(case) for case in cases]

    def _run(self, case: Case) -> Outcome:
        core = self._core
        uc = core.uc
        uc.context_restore(self._clean)
        code, data = initial_memory(case)
        uc.mem_write(CODE_BASE, bytes(code))
        uc.mem_write(DATA_BASE, bytes(data[:DATA_SIZE]))
        gpr = case.state.gpr
        frame = struct.pack(
            "<5Q", case.state.rip, _USER_CS[case.mode], case.state.rflags, gpr[4], 0x2B
        )
        uc.mem_write(_SAVE, case.state.raw.ljust(0x400, b"\0") + frame)
        uc.reg_write(x86.UC_X86_REG_RBP, _SAVE)
        uc.ctl_flush_tb()
        limit = STEP_LIMIT if case.mnemonic else 0
        if not core.start(_STUB, limit):
            return Outcome(case.state, CRASHED)
        if core.vector is None:
            return Outcome(case.state, TIMED_OUT)
        vector, error = core.vector, core.error_code
        *registers, rip, rflags = uc.reg_read_batch(_REGISTERS)
        address = core.cr2 if vector == PF else 0
        after_code = uc.mem_read(CODE_BASE, CODE_SIZE)
        after_data = uc.mem_read(DATA_BASE, DATA_SIZE)
        fxsave = core.fxsave()
        if case.mode != 64:
            registers = [value & 0xFFFF_FFFF for value in registers[:8]] + [0] * 8
        state = State(_HEAD.pack(*registers, rip, rflags & ~_RF) + fxsave)
        lines = changed_lines(CODE_BASE, code, after_code)
        lines += changed_lines(DATA_BASE, data[:DATA_SIZE], after_data)
        return Outcome(state, vector, error, address, tuple(lines))


class UnicornSystem:
    """Runs `SystemCase`s, each from a fresh machine state."""

    name = "unicorn"

    def __init__(self) -> None:
        core = self._core = _Core()
        uc = core.uc
        self._ram = 1 << 20
        uc.mem_map(0, self._ram)
        pointer = PRESENT | WRITABLE
        uc.mem_write(0, struct.pack(f"<{len(GDT)}Q", *GDT))
        for level in (1, 2):
            uc.mem_write(level * PAGE, _table({0: (level + 1) * PAGE | pointer}))
        uc.mem_write(3 * PAGE, _table({0: pointer | HUGE}))
        self._reset = uc.context_save()
        core.set_long_mode(CR0_LONG, PAGE, CR4_LONG, EFER_LONG)
        core.set_segments(0, 8 * len(GDT) - 1)
        core.look_inside(0x8000)

    def run_system(self, case: SystemCase) -> SystemOutcome:
        """Raises RuntimeError if the case does not end in an exception or HLT."""
        core = self._core
        uc = core.uc
        if case.ram != self._ram:
            uc.mem_unmap(0, self._ram)
            uc.mem_map(0, case.ram)
            self._ram = case.ram
        before = bytearray(case.ram)
        for address, content in case.memory:
            before[address : address + len(content)] = content
        uc.context_restore(self._reset)
        uc.mem_write(0, bytes(before))
        core.set_long_mode(case.cr0, case.cr3, case.cr4, case.efer)
        core.set_segments(case.gdt_base, case.gdt_limit)
        for index, value in case.msrs.items():
            core.write_msr(index, value)
        uc.reg_write_batch(
            [(reg, case.gpr.get(name, 0)) for reg, name in zip(_GPRS, GPR_NAMES, strict=True)]
        )
        uc.reg_write(x86.UC_X86_REG_EFLAGS, case.rflags)
        uc.reg_write(x86.UC_X86_REG_CR2, 0)
        uc.reg_write(x86.UC_X86_REG_CR3, case.cr3)
        uc.ctl_flush_tb()
        if not core.start(case.rip):
            raise RuntimeError("Unicorn could not run the system case")
        *registers, rip, rflags = uc.reg_read_batch(_REGISTERS)
        after = uc.mem_read(0, case.ram)
        return SystemOutcome(
            vector=core.vector,
            error_code=core.error_code,
            cr2=core.cr2,
            gpr=tuple(registers),
            rip=rip,
            rflags=rflags & ~_RF,
            segments=tuple(uc.reg_read(register) for register in _SELECTORS),
            fs_base=uc.reg_read(x86.UC_X86_REG_FS_BASE),
            gs_base=uc.reg_read(x86.UC_X86_REG_GS_BASE),
            memory=tuple(changed_lines(0, before, after)),
        )
