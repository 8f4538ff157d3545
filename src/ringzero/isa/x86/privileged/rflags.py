"""Instructions on RFLAGS as a whole and its system bits (Intel SDM vol. 2, each name)."""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86 import flags
from ringzero.isa.x86.cpu import (
    AC,
    ARITHMETIC_FLAGS,
    CR4_SMAP,
    DF,
    GP,
    ID,
    IF,
    IOPL,
    IOPL_SHIFT,
    NT,
    RF,
    RSP,
    SHADOW_STI,
    TF,
    UD,
    VM,
    Cpu,
    CpuidEntry,
)
from ringzero.isa.x86.insn.control import push_value, set_stack_pointer, stack_load
from ringzero.isa.x86.privileged.alignment import may_choose_tlb, select_tlb
from ringzero.isa.x86.privileged.faults import raise_ud
from ringzero.isa.x86.privileged.system import find_cpuid
from ringzero.isa.x86.table.forms import IN_HANDLER, instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import native, pointer, staged, u32, u64

# CPUID leaf 7, EBX.
SMAP_EBX = 1 << 20


@staged
def _io_privilege(cpu: Any) -> Any:
    return u32(cpu.rflags >> IOPL_SHIFT) & 3


@instruction("9C", sized=True, d64=True, fast=True)
def pushf(m: Operation) -> None:
    """PUSHF, PUSHFD, PUSHFQ: RF and VM are pushed as 0."""
    push_value(m, m.T((m.cpu.rflags | m.get_status() | 2) & ~u64(RF | VM)))


@native(inline="never")
def pop_flags(cpu: Cpu, image: u64, narrow: u32) -> None:
    """Set RFLAGS as POPF does: IOPL at CPL 0 only, IF at CPL <= IOPL, RF becomes 0."""
    mask = u64(ARITHMETIC_FLAGS | TF | DF | NT)
    if narrow == 0:
        mask = mask | AC | ID | RF
    if cpu.cpl == 0:
        mask = mask | IOPL
    if cpu.cpl <= _io_privilege(cpu):
        mask = mask | IF
    flags.set_rflags(cpu, image & ~u64(RF), mask)


@staged
def _may_unmask(cpu: Any) -> Any:
    """Return whether RFLAGS.IF may be set in translated code: no interrupt waits for that."""
    return cpu.requests == 0


@staged
def _pop_usual_flags(m: Operation) -> None:
    """POPF in translated code, where it changes no more of the system's bits than IF."""
    pointer = m.get(RSP, u64)
    image = u64(stack_load(m, m.T, pointer))
    changed = (image ^ m.cpu.rflags) & (TF | IF | DF | IOPL | NT | AC | ID)
    masked = changed == IF and m.cpu.cpl == 0 and _may_unmask(m.cpu)
    if not (changed == 0 or masked):
        m.defer()
    set_stack_pointer(m, pointer + m.T.size)
    m.cpu.rflags ^= changed
    m.set_status(image, ARITHMETIC_FLAGS)


@instruction("9D", sized=True, d64=True, d66=True, ends=IN_HANDLER, fast=True)
def popf(m: Operation) -> None:
    """POPF, POPFD, POPFQ."""
    if m.checked or m.size == 16:
        m.stop_block()
        pointer = m.get(RSP, u64)
        image = u64(stack_load(m, m.T, pointer))
        set_stack_pointer(m, pointer + m.T.size)
        pop_flags(m.cpu, image, int(m.size == 16))
    else:
        _pop_usual_flags(m)


@instruction("FA", fast=True)
def cli(m: Operation) -> None:
    """CLI: #GP(0) when CPL is above IOPL."""
    if m.cpu.cpl > _io_privilege(m.cpu):
        m.fault(GP, 0)
    m.cpu.rflags &= ~u64(IF)


@instruction("FB", ends=IN_HANDLER, fast=True, shadows=True)
def sti(m: Operation) -> None:
    """STI: interrupts come after the next instruction at the earliest, when IF was 0."""
    if m.cpu.cpl > _io_privilege(m.cpu):
        m.fault(GP, 0)
    if m.checked:
        m.stop_block()
        if (m.cpu.rflags & IF) == 0:
            m.cpu.rflags |= IF
            m.cpu.shadow = SHADOW_STI
    else:
        # Translated code goes on with an instruction that it cannot be left at.
        if not _may_unmask(m.cpu):
            m.defer()
        m.cpu.rflags |= IF


@instruction("FC", fast=True)
def cld(m: Operation) -> None:
    """CLD."""
    m.cpu.rflags &= ~u64(DF)


@instruction("FD", fast=True)
def std(m: Operation) -> None:
    """STD."""
    m.cpu.rflags |= DF


@native(inline="never")
def require_smap(cpu: Cpu) -> None:
    """#UD unless CPUID announces SMAP (SDM vol. 2B, STAC)."""
    found = find_cpuid(cpu, 7, 0)
    if found == 0 or pointer(CpuidEntry, found).ebx & SMAP_EBX == 0:
        raise_ud(cpu)


@staged
def _check_access_control(m: Operation) -> None:
    if m.cpu.cpl != 0:
        m.fault(UD)
    if m.checked:
        if (m.cpu.cr4 & CR4_SMAP) == 0:
            require_smap(m.cpu)
    elif (m.cpu.cr4 & CR4_SMAP) == 0 or not may_choose_tlb(m.cpu):
        m.defer()


@instruction("NP 0F 01 =CA", fast=True)
def clac(m: Operation) -> None:
    """CLAC: #UD above CPL 0."""
    _check_access_control(m)
    m.cpu.rflags &= ~u64(AC)
    if m.checked:
        select_tlb(m.cpu)
    else:
        m.cpu.tlb = m.cpu.tlb_kernel


@instruction("NP 0F 01 =CB", fast=True)
def stac(m: Operation) -> None:
    """STAC: #UD above CPL 0."""
    _check_access_control(m)
    m.cpu.rflags |= AC
    if m.checked:
        select_tlb(m.cpu)
    else:
        m.cpu.tlb = m.cpu.tlb_open
