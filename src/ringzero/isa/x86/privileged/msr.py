"""RDMSR, WRMSR and the model-specific registers kept in native code (SDM vol. 4, table 2-2).

All others (the local APIC's, KVM's, unknown ones) go to Python as EXIT_MSR_READ
and EXIT_MSR_WRITE; there a refusal raises #GP(0) at the instruction.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import (
    CR0_PG,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EXIT_MSR_READ,
    EXIT_MSR_WRITE,
    FS,
    GS,
    RAX,
    RCX,
    RDX,
    Cpu,
)
from ringzero.isa.x86.msrs import (
    CANONICAL,
    EFER_BITS,
    FIXED,
    IA32_ARCH_CAPABILITIES,
    IA32_EFER,
    IA32_FS_BASE,
    IA32_GS_BASE,
    IA32_MCG_CAP,
    IA32_MTRR_DEF_TYPE,
    IA32_MTRRCAP,
    IA32_PAT,
    IA32_PRED_CMD,
    IA32_SPEC_CTRL,
    IA32_TSC,
    IA32_TSC_ADJUST,
    IGNORED,
    MEMBERS,
    MSR_PLATFORM_INFO,
    MTRR_DEF_TYPE_BITS,
    NARROW,
    PLAIN,
    PRED_CMD_BITS,
    SPEC_CTRL_BITS,
)
from ringzero.isa.x86.privileged.apic import write_apic_msr
from ringzero.isa.x86.privileged.descriptors import is_canonical
from ringzero.isa.x86.privileged.faults import external, raise_gp0
from ringzero.isa.x86.privileged.lookaside import flush_tlb
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import native, read_host_tsc, staged, u32, u64
from ringzero.native.values import set_field


@staged
def guest_tsc(cpu: Any, ordered: bool = True) -> Any:
    """Return the guest's time-stamp counter, read after all earlier loads if `ordered`."""
    return read_host_tsc(ordered) + cpu.counter_offset


@native(inline="never")
def read_msr(cpu: Cpu, index: u32) -> u64:
    """Return a model-specific register; the outside answers for those not kept here."""
    for number, name in MEMBERS.items():
        if index == number:
            return getattr(cpu, name)
    for number, value in FIXED.items():
        if index == number:
            return u64(value)
    if index == IA32_TSC:
        return guest_tsc(cpu)
    if cpu.arch_capabilities != 0:
        if index == IA32_ARCH_CAPABILITIES:
            return cpu.arch_capabilities
        if index == IA32_SPEC_CTRL:
            return cpu.spec_ctrl
    if index == IA32_FS_BASE:
        return cpu.seg[FS].base
    if index == IA32_GS_BASE:
        return cpu.seg[GS].base
    return external(cpu, EXIT_MSR_READ, u64(index), 8, 0)


@native(inline="never")
def write_efer(cpu: Cpu, value: u64) -> None:
    """Write IA32_EFER: LME cannot change under paging, LMA is not writable (SDM 3A, 2.2.1)."""
    if value & ~u64(EFER_BITS) != 0:
        raise_gp0(cpu)
    changed = value ^ cpu.efer
    if cpu.cr0 & CR0_PG != 0 and changed & EFER_LME != 0:
        raise_gp0(cpu)
    cpu.efer = (value & ~u64(EFER_LMA)) | (cpu.efer & EFER_LMA)
    if changed & EFER_NXE != 0:
        flush_tlb(cpu)


@native(inline="never")
def check_pat(cpu: Cpu, value: u64) -> None:
    """#GP(0) unless each byte is a memory type: 0, 1, 4, 5, 6, 7 (SDM vol. 3A, 11.12.2)."""
    for n in range(8):
        kind = (value >> (n * 8)) & 0xFF
        if kind > 7 or kind == 2 or kind == 3:
            raise_gp0(cpu)


@staged
def set_member(cpu: Any, name: str, value: Any) -> None:
    """Store a member of Cpu whose name is known at generation time."""
    set_field(cpu, name, value)


@staged
def _canonical_base(cpu: Any, value: Any) -> None:
    if not is_canonical(value):
        raise_gp0(cpu)


@native(inline="never")
def write_msr(cpu: Cpu, index: u32, value: u64) -> None:
    """Write a model-specific register; what is not kept here goes to the outside."""
    for number, name in PLAIN.items():
        if index == number:
            set_member(cpu, name, value)
            return
    for number, name in CANONICAL.items():
        if index == number:
            _canonical_base(cpu, value)
            set_member(cpu, name, value)
            return
    for number, name in NARROW.items():
        if index == number:
            if value >> 32 != 0:
                raise_gp0(cpu)
            set_member(cpu, name, value)
            return
    for number in IGNORED:
        if index == number:
            return
    if cpu.arch_capabilities != 0:
        if index == IA32_SPEC_CTRL:
            if value & ~u64(SPEC_CTRL_BITS) != 0:
                raise_gp0(cpu)
            cpu.spec_ctrl = value
            return
        if index == IA32_PRED_CMD:
            if value & ~u64(PRED_CMD_BITS) != 0:
                raise_gp0(cpu)
            return
        if index == IA32_ARCH_CAPABILITIES:
            raise_gp0(cpu)
    if index == IA32_EFER:
        write_efer(cpu, value)
    elif index == IA32_FS_BASE:
        _canonical_base(cpu, value)
        cpu.seg[FS].base = value
    elif index == IA32_GS_BASE:
        _canonical_base(cpu, value)
        cpu.seg[GS].base = value
    elif index == IA32_TSC:
        move_tsc(cpu, value - guest_tsc(cpu))
    elif index == IA32_TSC_ADJUST:
        move_tsc(cpu, value - cpu.tsc_adjust)
    elif index == IA32_PAT:
        check_pat(cpu, value)
        cpu.pat = value
    elif index == IA32_MTRR_DEF_TYPE:
        if value & ~u64(MTRR_DEF_TYPE_BITS) != 0:
            raise_gp0(cpu)
        cpu.mtrr_def_type = value
    elif index == IA32_MTRRCAP or index == IA32_MCG_CAP or index == MSR_PLATFORM_INFO:
        raise_gp0(cpu)
    elif write_apic_msr(cpu, index, value) == 0:
        external(cpu, EXIT_MSR_WRITE, u64(index), 8, value)


@native(inline="never")
def move_tsc(cpu: Cpu, amount: u64) -> None:
    """Add to the guest's TSC and to IA32_TSC_ADJUST alike (SDM vol. 3B, 17.17.3)."""
    cpu.counter_offset += amount
    cpu.tsc_adjust += amount


@instruction("0F 32", privileged=True)
def rdmsr(m: Operation) -> None:
    """RDMSR."""
    value = read_msr(m.cpu, m.get(RCX, u32))
    m.set(RAX, u32(value))
    m.set(RDX, u32(value >> 32))


@instruction("0F 30", privileged=True, ends=True)
def wrmsr(m: Operation) -> None:
    """WRMSR."""
    value = u64(m.get(RAX, u32)) | (u64(m.get(RDX, u32)) << 32)
    write_msr(m.cpu, m.get(RCX, u32), value)
    m.stop_block()
