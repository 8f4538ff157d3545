"""Saving and restoring x87, MMX, SSE and AVX state; MXCSR; XCR0.

FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XRSTOR, XGETBV, XSETBV, LDMXCSR, STMXCSR:
Intel SDM vol. 1, sections 10.5 and 13, and vol. 2. The components are x87, SSE and, with
some CPU models, AVX (`Cpu.xcr0_mask`); all of them always count as in use.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import (
    CR0_TS,
    CR4_OSXSAVE,
    GP,
    NM,
    RAX,
    RCX,
    RDX,
    UD,
    XCR0_AVX,
    XCR0_SSE,
    XCR0_X87,
    Cpu,
)
from ringzero.isa.x86.insn import mxcsr
from ringzero.isa.x86.insn.sse_operands import constant
from ringzero.isa.x86.insn.x87_control import get_status, reset_fpu, set_control, set_status
from ringzero.isa.x86.privileged.alignment import check_alignment
from ringzero.isa.x86.privileged.lookaside import flush_jump_cache
from ringzero.isa.x86.state import AVX_AREA, XSAVE_AVX_SIZE, XSAVE_BASE_SIZE
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import load, select, staged, store, u8, u16, u32, u64, v128

# Offsets in the legacy area (SDM vol. 1, table 10-2) and of the XSAVE header (13.4.2).
FCW, FSW, FTW, FOP, FIP, FDP, MXCSR, MXCSR_MASK, ST, XMM = 0, 2, 4, 6, 8, 16, 24, 28, 32, 160
XSTATE_BV, XCOMP_BV, HEADER_REST = 512, 520, 528


@staged
def xmm_count(m: Operation) -> Any:
    """Return how many XMM registers the mode reaches (u64)."""
    return select(m.long_mode(), u64(16), u64(8))


@staged
def aligned_address(m: Operation, mask: int) -> Any:
    """Return the address of the memory operand; #GP(0) when it has bits of `mask`.

    Where alignment is checked, #AC(0) comes first for one that is no multiple of 4,
    as on AMD processors; the manual leaves it open (SDM vol. 2A, FXSAVE).
    """
    address = m.address(0)
    check_alignment(m.cpu, address, 4, 1)
    if (address & mask) != 0:
        m.fault(GP, 0)
    return address


# --- the two components ----------------------------------------------------


@staged
def store_x87(m: Operation, address: Any) -> None:
    """Store control words, pointers and ST(0) to ST(7); selectors are stored as 0."""
    cpu = m.cpu
    m.store(u16, address + FCW, cpu.fcw)
    m.store(u16, address + FSW, get_status(cpu))
    m.store(u16, address + FTW, u16(cpu.ftags))
    m.store(u16, address + FOP, cpu.fpu_opcode & 0x7FF)
    if m.size == 64:
        m.store(u64, address + FIP, cpu.fpu_ip)
        m.store(u64, address + FDP, cpu.fpu_dp)
    else:
        m.store(u64, address + FIP, cpu.fpu_ip & 0xFFFFFFFF)
        m.store(u64, address + FDP, cpu.fpu_dp & 0xFFFFFFFF)
    index = u64(0)
    while index < 8:
        slot = cpu.fpr.address((u64(cpu.ftop) + index) & 7)
        where = address + ST + (index << 4)
        m.store(u64, where, load(u64, slot))
        m.store(u64, where + 8, u64(load(u16, slot, 8)))
        index += 1


@staged
def load_x87(m: Operation, address: Any) -> None:
    """Load what `store_x87` stored."""
    cpu = m.cpu
    control = m.load(u16, address + FCW)
    status = m.load(u16, address + FSW)
    tags = m.load(u8, address + FTW)
    opcode = m.load(u16, address + FOP)
    ip = m.load(u64, address + FIP)
    dp = m.load(u64, address + FDP)
    cpu.fpu_opcode = opcode & 0x7FF
    if m.size == 64:
        cpu.fpu_ip = ip
        cpu.fpu_dp = dp
    else:
        cpu.fpu_ip = ip & 0xFFFFFFFF
        cpu.fpu_dp = dp & 0xFFFFFFFF
    cpu.ftags = tags
    set_status(cpu, status)
    set_control(cpu, control)
    index = u64(0)
    while index < 8:
        slot = cpu.fpr.address((u64(cpu.ftop) + index) & 7)
        where = address + ST + (index << 4)
        store(u64, slot, m.load(u64, where))
        store(u16, slot, m.load(u16, where + 8), 8)
        index += 1


@staged
def store_xmm(m: Operation, address: Any) -> None:
    """Store the XMM registers."""
    cpu = m.cpu
    index = u64(0)
    while index < xmm_count(m):
        m.store(v128, address + XMM + (index << 4), cpu.xmm[index])
        index += 1


@staged
def load_xmm(m: Operation, address: Any) -> None:
    """Load the XMM registers."""
    cpu = m.cpu
    index = u64(0)
    while index < xmm_count(m):
        cpu.xmm[index] = m.load(v128, address + XMM + (index << 4))
        index += 1


@staged
def store_upper(m: Operation, address: Any) -> None:
    """Store the upper halves of the YMM registers."""
    cpu = m.cpu
    index = u64(0)
    while index < xmm_count(m):
        m.store(v128, address + AVX_AREA + (index << 4), cpu.ymm_high[index])
        index += 1


@staged
def load_upper(m: Operation, address: Any) -> None:
    """Load the upper halves of the YMM registers."""
    cpu = m.cpu
    index = u64(0)
    while index < xmm_count(m):
        cpu.ymm_high[index] = m.load(v128, address + AVX_AREA + (index << 4))
        index += 1


@staged
def store_mxcsr(m: Operation, address: Any) -> None:
    """Store MXCSR and the mask of its bits that exist."""
    cpu = m.cpu
    mxcsr.harvest(cpu)
    m.store(u32, address + MXCSR, cpu.mxcsr)
    m.store(u32, address + MXCSR_MASK, u32(mxcsr.VALID))


@staged
def check_mxcsr(m: Operation, value: Any) -> None:
    """Raise #GP(0) for a value of MXCSR with reserved bits."""
    if (value & ~mxcsr.VALID & 0xFFFFFFFF) != 0:
        m.fault(GP, 0)


@staged
def probe_image(m: Operation, address: Any, size: Any) -> None:
    """Read the ends of an image first, so that a page fault in it changes nothing."""
    m.load(u8, address)
    m.load(u8, address + (size - 1))


# --- FXSAVE, FXRSTOR -------------------------------------------------------


@instruction("NP 0F AE /0:m : M", sized=True, fpu=True)
def fxsave(m: Operation) -> None:
    "FXSAVE, FXSAVE64 (Intel SDM vol. 2A)."
    address = aligned_address(m, 15)
    store_x87(m, address)
    store_mxcsr(m, address)
    store_xmm(m, address)


@instruction("NP 0F AE /1:m : M", sized=True, fpu=True)
def fxrstor(m: Operation) -> None:
    "FXRSTOR, FXRSTOR64 (Intel SDM vol. 2A)."
    address = aligned_address(m, 15)
    probe_image(m, address, 512)
    value = m.load(u32, address + MXCSR)
    check_mxcsr(m, value)
    load_x87(m, address)
    load_xmm(m, address)
    mxcsr.set_mxcsr(m.cpu, value)


# --- XSAVE, XRSTOR ---------------------------------------------------------


@staged
def check_xsave(m: Operation) -> None:
    """Raise #UD without CR4.OSXSAVE, #NM with CR0.TS."""
    cpu = m.cpu
    if (cpu.cr4 & CR4_OSXSAVE) == 0:
        m.fault(UD)
    if (cpu.cr0 & CR0_TS) != 0:
        m.fault(NM)


@staged
def requested(m: Operation) -> Any:
    """Return the requested-feature bitmap: EDX:EAX and XCR0 (u64)."""
    return u64(m.get(RAX, u32)) & m.cpu.xcr0


@instruction("NP 0F AE /4:m : M", "NP 0F AE /6:m : M", sized=True)
def xsave(m: Operation) -> None:
    "XSAVE, XSAVEOPT (Intel SDM vol. 2D): both store all that is requested."
    check_xsave(m)
    address = aligned_address(m, 63)
    bitmap = requested(m)
    if (bitmap & XCR0_X87) != 0:
        store_x87(m, address)
    if (bitmap & (XCR0_SSE | XCR0_AVX)) != 0:
        store_mxcsr(m, address)
    if (bitmap & XCR0_SSE) != 0:
        store_xmm(m, address)
    if (bitmap & XCR0_AVX) != 0:
        store_upper(m, address)
    m.store(u64, address + XSTATE_BV, m.load(u64, address + XSTATE_BV) | bitmap)


@instruction("NP 0F AE /5:m : M", sized=True)
def xrstor(m: Operation) -> None:
    "XRSTOR (Intel SDM vol. 2D), standard form."
    check_xsave(m)
    address = aligned_address(m, 63)
    cpu = m.cpu
    bitmap = requested(m)
    avx = (bitmap & XCR0_AVX) != 0
    probe_image(m, address, select(avx, u64(XSAVE_AVX_SIZE), u64(XSAVE_BASE_SIZE)))
    present = m.load(u64, address + XSTATE_BV)
    reserved = m.load(u64, address + XCOMP_BV) | m.load(u64, address + HEADER_REST)
    if (reserved | (present & ~cpu.xcr0)) != 0:
        m.fault(GP, 0)
    if (bitmap & (XCR0_SSE | XCR0_AVX)) != 0:
        value = m.load(u32, address + MXCSR)
        check_mxcsr(m, value)
        if (bitmap & XCR0_SSE) != 0:
            if (present & XCR0_SSE) != 0:
                load_xmm(m, address)
            else:
                clear_xmm(m)
        if avx:
            if (present & XCR0_AVX) != 0:
                load_upper(m, address)
            else:
                clear_upper(m)
        mxcsr.set_mxcsr(cpu, value)
    if (bitmap & XCR0_X87) != 0:
        if (present & XCR0_X87) != 0:
            load_x87(m, address)
        else:
            clear_x87(cpu)


@staged
def clear_xmm(m: Operation) -> None:
    """Give the XMM registers their initial value."""
    cpu = m.cpu
    index = u64(0)
    while index < xmm_count(m):
        cpu.xmm[index] = constant(0)
        index += 1


@staged
def clear_upper(m: Operation) -> None:
    """Clear the upper halves of the YMM registers that the mode reaches."""
    cpu = m.cpu
    index = u64(0)
    while index < xmm_count(m):
        cpu.ymm_high[index] = constant(0)
        index += 1


@staged
def clear_x87(cpu: Cpu) -> None:
    """Give the x87 its initial state, registers included."""
    reset_fpu(cpu)
    for number in range(8):
        cpu.fpr[number] = constant(0)


@instruction("NP 0F 01 =D0")
def xgetbv(m: Operation) -> None:
    "XGETBV (Intel SDM vol. 2D): XCR0 is the only register."
    cpu = m.cpu
    if (cpu.cr4 & CR4_OSXSAVE) == 0:
        m.fault(UD)
    if m.get(RCX, u32) != 0:
        m.fault(GP, 0)
    m.set(RAX, u32(cpu.xcr0))
    m.set(RDX, u32(cpu.xcr0 >> 32))


@instruction("NP 0F 01 =D1", ends=True)
def xsetbv(m: Operation) -> None:
    "XSETBV (Intel SDM vol. 2D): x87 must be enabled, SSE may be, and with it AVX."
    cpu = m.cpu
    if (cpu.cr4 & CR4_OSXSAVE) == 0:
        m.fault(UD)
    value = u64(m.get(RAX, u32)) | (u64(m.get(RDX, u32)) << 32)
    refused = (m.get(RCX, u32) != 0) | ((value & XCR0_X87) == 0)
    refused = refused | ((value & ~cpu.xcr0_mask) != 0)
    refused = refused | ((value & (XCR0_SSE | XCR0_AVX)) == XCR0_AVX)
    if refused | (cpu.cpl != 0):
        m.fault(GP, 0)
    cpu.xcr0 = value
    flush_jump_cache(cpu)
    m.stop_block()


# --- MXCSR -----------------------------------------------------------------


@instruction("NP 0F AE /2:m : Md", sse=True)
def ldmxcsr(m: Operation) -> None:
    "LDMXCSR (Intel SDM vol. 2A)."
    value = m.read(0)
    check_mxcsr(m, value)
    mxcsr.set_mxcsr(m.cpu, value)


@instruction("NP 0F AE /3:m : Md", sse=True)
def stmxcsr(m: Operation) -> None:
    "STMXCSR (Intel SDM vol. 2B)."
    mxcsr.harvest(m.cpu)
    m.write(0, m.cpu.mxcsr)
