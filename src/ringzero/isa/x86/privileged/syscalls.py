"""SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS (Intel SDM vol. 2B, each name).

Where Intel's and AMD's processors differ, the vendor that CPUID names is followed. Intel's have
SYSCALL and SYSRET in 64-bit mode only, and SYSENTER and SYSEXIT in IA-32e mode too; AMD's the
other way round: SYSCALL in every protected mode, by CSTAR from compatibility mode and by
STAR[31:0] outside long mode, and no SYSENTER in long mode (AMD64 APM vol. 2, 6.1). SYSRET to
an address that is not canonical raises #GP(0) at privilege level 0 in both.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86 import flags
from ringzero.isa.x86.cpu import (
    AC,
    ARITHMETIC_FLAGS,
    CS,
    EFER_SCE,
    GS,
    IF,
    MODE_64,
    R11,
    RCX,
    RDX,
    RF,
    RSP,
    SS,
    TF,
    VM,
    Cpu,
)
from ringzero.isa.x86.privileged.alignment import may_choose_tlb
from ringzero.isa.x86.privileged.descriptors import (
    FLAT_CODE32,
    FLAT_CODE64,
    FLAT_DATA,
    is_canonical,
    load_flat,
    long_mode_active,
    protected_mode,
    set_flat,
    update_mode,
)
from ringzero.isa.x86.privileged.faults import raise_gp0, raise_ud
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import native, select, staged, u32, u64

DPL3 = 3 << 5

# RFLAGS bits that SYSRET loads from R11: all but RF, VM and the reserved ones.
SYSRET_FLAGS = 0x3C7FD7


@staged
def has_syscall(cpu: Any) -> Any:
    """Return whether the mode has SYSCALL and SYSRET: AMD's have them in all protected modes."""
    return (cpu.mode == MODE_64) | ((cpu.is_amd != 0) & protected_mode(cpu))


@native(inline="never")
def legacy_syscall(cpu: Cpu) -> None:
    """SYSCALL outside long mode (AMD64 APM vol. 3): ECX has the return address, no flag is kept."""
    cpu.regs[RCX] = cpu.next_rip & 0xFFFFFFFF
    cpu.rflags &= ~u64(VM | IF | RF)
    selector = u32(cpu.star >> 32) & 0xFFFC
    set_flat(cpu, CS, selector, FLAT_CODE32)
    set_flat(cpu, SS, selector + 8, FLAT_DATA)
    cpu.cpl = 0
    update_mode(cpu)
    cpu.next_rip = cpu.star & 0xFFFFFFFF


@native(inline="never")
def syscall_enter(cpu: Cpu) -> None:
    """SYSCALL."""
    if cpu.efer & EFER_SCE == 0 or not has_syscall(cpu):
        raise_ud(cpu)
    if not long_mode_active(cpu):
        legacy_syscall(cpu)
        return
    image = flags.get_rflags(cpu) & ~u64(RF)
    cpu.regs[RCX] = cpu.next_rip
    cpu.regs[R11] = image
    flags.set_rflags(cpu, image & ~cpu.sfmask, ~u64(0))
    selector = u32(cpu.star >> 32) & 0xFFFC
    target = select(cpu.mode == MODE_64, cpu.lstar, cpu.cstar)
    set_flat(cpu, CS, selector, FLAT_CODE64)
    set_flat(cpu, SS, selector + 8, FLAT_DATA)
    cpu.cpl = 0
    update_mode(cpu)
    cpu.next_rip = target
    if cpu.rflags & TF == 0:
        cpu.stepping = 0


@native(inline="never")
def syscall_return(cpu: Cpu, wide: u32) -> None:
    """SYSRET; `wide` for the form with REX.W, which returns to 64-bit code."""
    if cpu.efer & EFER_SCE == 0 or not has_syscall(cpu):
        raise_ud(cpu)
    if cpu.cpl != 0:
        raise_gp0(cpu)
    target = u64(cpu.regs[RCX])
    selector = u32(cpu.star >> 48)
    if wide != 0:
        if not is_canonical(target):
            raise_gp0(cpu)
        set_flat(cpu, CS, (selector + 16) | 3, FLAT_CODE64 | DPL3)
    else:
        target = target & 0xFFFFFFFF
        set_flat(cpu, CS, selector | 3, FLAT_CODE32 | DPL3)
    set_flat(cpu, SS, (selector + 8) | 3, FLAT_DATA | DPL3)
    if long_mode_active(cpu):
        flags.set_rflags(cpu, cpu.regs[R11] & SYSRET_FLAGS, ~u64(0))
    else:
        cpu.rflags |= IF
    cpu.cpl = 3
    update_mode(cpu)
    cpu.next_rip = target


@staged
def require_fast_system_calls(cpu: Any) -> None:
    """#UD in long mode of AMD's, which have SYSENTER and SYSEXIT outside it only."""
    if cpu.is_amd != 0 and long_mode_active(cpu):
        raise_ud(cpu)


@native(inline="never")
def fast_enter(cpu: Cpu) -> None:
    """SYSENTER."""
    require_fast_system_calls(cpu)
    selector = u32(cpu.sysenter_cs) & 0xFFFC
    if not protected_mode(cpu) or selector == 0:
        raise_gp0(cpu)
    cpu.rflags &= ~u64(VM | IF)
    if long_mode_active(cpu):
        cpu.regs[RSP] = cpu.sysenter_esp
        cpu.next_rip = cpu.sysenter_eip
        set_flat(cpu, CS, selector, FLAT_CODE64)
    else:
        cpu.regs[RSP] = cpu.sysenter_esp & 0xFFFFFFFF
        cpu.next_rip = cpu.sysenter_eip & 0xFFFFFFFF
        set_flat(cpu, CS, selector, FLAT_CODE32)
    set_flat(cpu, SS, selector + 8, FLAT_DATA)
    cpu.cpl = 0
    update_mode(cpu)


@native(inline="never")
def fast_exit(cpu: Cpu, wide: u32) -> None:
    """SYSEXIT; `wide` for the form with REX.W, which returns to 64-bit code."""
    require_fast_system_calls(cpu)
    selector = u32(cpu.sysenter_cs) & 0xFFFC
    if not protected_mode(cpu) or selector == 0 or cpu.cpl != 0:
        raise_gp0(cpu)
    selector = (u32(cpu.sysenter_cs) & 0xFFFF) | 3
    if wide != 0:
        if not is_canonical(cpu.regs[RCX]) or not is_canonical(cpu.regs[RDX]):
            raise_gp0(cpu)
        cpu.regs[RSP] = cpu.regs[RCX]
        cpu.next_rip = cpu.regs[RDX]
        set_flat(cpu, CS, selector + 32, FLAT_CODE64 | DPL3)
        set_flat(cpu, SS, selector + 40, FLAT_DATA | DPL3)
    else:
        cpu.regs[RSP] = cpu.regs[RCX] & 0xFFFFFFFF
        cpu.next_rip = cpu.regs[RDX] & 0xFFFFFFFF
        set_flat(cpu, CS, selector + 16, FLAT_CODE32 | DPL3)
        set_flat(cpu, SS, selector + 24, FLAT_DATA | DPL3)
    cpu.cpl = 3
    update_mode(cpu)


@staged
def _replace_flags(m: Operation, image: Any) -> None:
    """Set RFLAGS, of which no bit means that the run loop must look."""
    m.cpu.rflags = (image & ~u64(ARITHMETIC_FLAGS)) | 2
    m.set_status(image, ARITHMETIC_FLAGS)


@staged
def _enter_kernel(m: Operation) -> None:
    """SYSCALL of 64-bit code, in translated code; the handler has all other cases."""
    cpu = m.cpu
    usual = (cpu.efer & EFER_SCE) != 0 and cpu.mode == MODE_64 and may_choose_tlb(cpu)
    if not (usual and is_canonical(cpu.lstar)):
        m.defer()
    image = (cpu.rflags & ~u64(RF)) | m.get_status() | 2
    m.set(RCX, m.next_rip)
    cpu.regs[R11] = image
    image = image & ~cpu.sfmask
    _replace_flags(m, image)
    selector = u32(cpu.star >> 32) & 0xFFFC
    load_flat(cpu, CS, selector, FLAT_CODE64)
    load_flat(cpu, SS, selector + 8, FLAT_DATA)
    cpu.cpl = 0
    cpu.tlb = select((image & AC) != 0, cpu.tlb_open, cpu.tlb_kernel)
    cpu.jump_cache = cpu.jump_kernel
    m.jump(cpu.lstar)


@staged
def _return_to_user(m: Operation) -> None:
    """SYSRET to 64-bit code, in translated code; the handler has all other cases.

    It has that of an interrupt which waits, too, as RFLAGS.IF may be set here.
    """
    cpu = m.cpu
    image = cpu.regs[R11] & SYSRET_FLAGS
    usual = (cpu.efer & EFER_SCE) != 0 and cpu.mode == MODE_64 and cpu.cpl == 0
    usual = usual and may_choose_tlb(cpu) and cpu.requests == 0
    target = m.get(RCX, u64)
    if not (usual and (image & (TF | AC)) == 0 and is_canonical(target)):
        m.defer()
    _replace_flags(m, image)
    selector = u32(cpu.star >> 48)
    load_flat(cpu, CS, (selector + 16) | 3, FLAT_CODE64 | DPL3)
    load_flat(cpu, SS, (selector + 8) | 3, FLAT_DATA | DPL3)
    cpu.cpl = 3
    cpu.tlb = cpu.tlb_user
    cpu.jump_cache = cpu.jump_user
    m.jump(target)


@instruction("0F 05", ends=True, fast=True)
def syscall(m: Operation) -> None:
    """SYSCALL."""
    if m.checked:
        m.stop_block()
        syscall_enter(m.cpu)
    else:
        _enter_kernel(m)


@instruction("0F 07", sized=True, ends=True, fast=True)
def sysret(m: Operation) -> None:
    """SYSRET."""
    if m.checked or m.size != 64:
        m.stop_block()
        syscall_return(m.cpu, int(m.size == 64))
    else:
        _return_to_user(m)


@instruction("0F 34", ends=True)
def sysenter(m: Operation) -> None:
    """SYSENTER."""
    fast_enter(m.cpu)
    m.stop_block()


@instruction("0F 35", sized=True, ends=True)
def sysexit(m: Operation) -> None:
    """SYSEXIT."""
    fast_exit(m.cpu, int(m.size == 64))
    m.stop_block()


@instruction("0F 01 =F8", only64=True, privileged=True, fast=True)
def swapgs(m: Operation) -> None:
    """SWAPGS."""
    old = m.cpu.seg[GS].base
    m.cpu.seg[GS].base = m.cpu.kernel_gs_base
    m.cpu.kernel_gs_base = old
