"""Between the software engine's `Cpu` struct and the plain `CpuState` of every engine.

The vCPU must not be running, and no access of its may wait for an answer.
What the local APIC and the board keep (CR8, the APIC's and KVM's MSRs, an AP's
wait for SIPI) is theirs to save.
"""

from __future__ import annotations

from typing import Any

from ringzero.errors import StateError
from ringzero.isa.x86 import ccops, state
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.cpu import SHADOW_SS, SHADOW_STI
from ringzero.isa.x86.msrs import IA32_SPEC_CTRL, MEMBERS
from ringzero.isa.x86.state import CpuState, PendingEvent, Segment, Table

U64 = (1 << 64) - 1

# Fields of CpuState in the order of `Cpu.seg`.
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")
CONTROL = ("cr0", "cr2", "cr3", "cr4", "efer", "xcr0")
DEBUG = {"dr0": 0, "dr1": 1, "dr2": 2, "dr3": 3, "dr6": 6, "dr7": 7}
MSRS = {number: name for number, name in MEMBERS.items() if name != "efer"}

# What every CPU model of this engine can have enabled in XCR0: x87 and SSE.
XCR0_BASE = x86.XCR0_X87 | x86.XCR0_SSE
_HEADER = state.XSAVE_LEGACY_SIZE


# --- flags that the struct keeps apart ---------------------------------------


def read_rflags(cpu: Any) -> int:
    """Return RFLAGS, the lazy arithmetic flags computed."""
    return int(cpu.rflags) | _status(cpu) | 2


def _status(cpu: Any) -> int:
    """Return the arithmetic flags as `flags.compute_status` does, in Python."""
    kind, log2 = divmod(cpu.cc_op, 4)
    if kind == ccops.STATUS:
        return int(cpu.cc_src) & x86.ARITHMETIC_FLAGS
    bits = 8 << log2
    mask = (1 << bits) - 1
    dst, src, aux = (int(v) & mask for v in (cpu.cc_dst, cpu.cc_src, cpu.cc_aux))
    top = bits - 1
    carry = overflow = adjust = 0
    if kind in (ccops.ADD, ccops.ADC):
        with_carry = aux if kind == ccops.ADC else 0
        first = (dst - src - with_carry) & mask
        carry = (first + src + with_carry) >> bits
        overflow = ((first ^ dst) & (src ^ dst)) >> top
        adjust = (first ^ src ^ dst) >> 4
    elif kind in (ccops.SUB, ccops.SBB):
        borrow = aux if kind == ccops.SBB else 0
        first = (dst + src + borrow) & mask
        carry = int(first < src + borrow)
        overflow = ((first ^ src) & (first ^ dst)) >> top
        adjust = (first ^ src ^ dst) >> 4
    elif kind == ccops.INC:
        carry, overflow, adjust = int(src != 0), int(dst == 1 << top), int(dst & 0xF == 0)
    elif kind == ccops.DEC:
        carry = int(src != 0)
        overflow, adjust = int(dst == (1 << top) - 1), int(dst & 0xF == 0xF)
    elif kind == ccops.SHL:
        carry, overflow = src >> top, (dst ^ src) >> top
    elif kind == ccops.SAR:
        carry, overflow = src, (dst ^ src) >> top
    elif kind == ccops.MUL:
        carry = overflow = int(src != 0)
    parity = ~(dst & 0xFF).bit_count()
    result = carry & 1 | (parity & 1) << 2 | (adjust & 1) << 4
    return result | (dst == 0) << 6 | (dst >> top) << 7 | (overflow & 1) << 11


def write_rflags(cpu: Any, value: int) -> None:
    """Replace RFLAGS."""
    cpu.rflags = value & ~x86.ARITHMETIC_FLAGS | 2
    cpu.cc_src = value & x86.ARITHMETIC_FLAGS
    cpu.cc_op = ccops.STATUS


# --- segments ----------------------------------------------------------------


def _read_segment(segment: Any) -> Segment:
    # The struct keeps bits 12-15 of the descriptor's word where the VMCB packs them at 8-11.
    attributes = segment.attributes & 0xFF | segment.attributes >> 4 & 0xF00
    return Segment(segment.selector, segment.base, segment.limit, attributes)


def _write_segment(segment: Any, value: Segment) -> None:
    segment.selector = value.selector
    segment.base = value.base
    segment.limit = value.limit
    segment.attributes = value.attributes & 0xFF | (value.attributes & 0xF00) << 4


def select_tlb(cpu: Any) -> None:
    """Choose the TLB, as `alignment.select_tlb` does."""
    if cpu.cpl != 3:
        cpu.tlb = cpu.tlb_open if cpu.rflags & x86.AC else cpu.tlb_kernel
    elif cpu.rflags & x86.AC and cpu.cr0 & x86.CR0_AM:
        cpu.tlb = cpu.tlb_checked
    else:
        cpu.tlb = cpu.tlb_user


def select_tables(cpu: Any) -> None:
    """Choose TLB and jump cache of the address space in force."""
    select_tlb(cpu)
    cpu.jump_cache = cpu.jump_user if cpu.cpl == 3 else cpu.jump_kernel


def _derive_mode(cpu: Any) -> None:
    """Set what follows from segments and control registers, as `descriptors.update_mode` does."""
    protected = cpu.cr0 & x86.CR0_PE
    cpu.cpl = cpu.seg[x86.SS].attributes >> x86.ATTR_DPL_SHIFT & 3 if protected else 0
    code = cpu.seg[x86.CS].attributes
    if cpu.efer & x86.EFER_LMA and code & x86.ATTR_L:
        cpu.mode = x86.MODE_64
    else:
        cpu.mode = x86.MODE_32 if code & x86.ATTR_DB else x86.MODE_16
    select_tables(cpu)
    flat = all(
        cpu.seg[n].base == 0
        and cpu.seg[n].limit == 0xFFFFFFFF
        # Writable data that expands up: S, and a type of 001x.
        and (n == x86.CS or cpu.seg[n].attributes & 0x1E == 0x12)
        for n in (x86.CS, x86.SS, x86.DS, x86.ES)
    )
    cpu.segmented = int(cpu.mode != x86.MODE_64 and not flat)
    cpu.limited = sum(
        bit
        for n, bit in ((x86.FS, x86.FS_LIMITED), (x86.GS, x86.GS_LIMITED))
        # Present, and writable data as above.
        if cpu.seg[n].limit != 0xFFFFFFFF or cpu.seg[n].attributes & 0x9E != 0x92
    )
    cpu.stop_block = 1


# --- x87 and SSE -------------------------------------------------------------


def read_xsave(cpu: Any) -> bytes:
    """Return x87, SSE and, where it has any, AVX state as an XSAVE area (SDM vol. 1, 13.4)."""
    top = cpu.ftop & 7
    area = bytearray(state.XSAVE_BASE_SIZE)
    area[0:2] = int(cpu.fcw).to_bytes(2, "little")
    area[2:4] = (cpu.fsw & ~0x3800 | top << 11).to_bytes(2, "little")
    area[4] = cpu.ftags
    area[6:8] = int(cpu.fpu_opcode).to_bytes(2, "little")
    area[8:16] = int(cpu.fpu_ip).to_bytes(8, "little")
    area[16:24] = int(cpu.fpu_dp).to_bytes(8, "little")
    area[24:28] = int(cpu.mxcsr).to_bytes(4, "little")
    area[28:32] = (0xFFFF).to_bytes(4, "little")
    for n in range(8):
        value = int(cpu.fpr[(top + n) & 7]) & ((1 << 80) - 1)
        area[32 + 16 * n : 42 + 16 * n] = value.to_bytes(10, "little")
    for n in range(16):
        area[160 + 16 * n : 176 + 16 * n] = int(cpu.xmm[n]).to_bytes(16, "little")
    area[_HEADER] = XCR0_BASE
    if cpu.xcr0_mask & x86.XCR0_AVX:
        area[_HEADER] |= x86.XCR0_AVX
        area += b"".join(int(cpu.ymm_high[n]).to_bytes(16, "little") for n in range(16))
    return bytes(area)


def write_xsave(cpu: Any, area: bytes) -> None:
    """Take x87, SSE and AVX state from an XSAVE area; a component not in its header is initial."""
    if len(area) < state.XSAVE_BASE_SIZE:
        raise StateError(
            "an XSAVE area is cut short", expected=state.XSAVE_BASE_SIZE, seen=len(area)
        )
    present = int.from_bytes(area[_HEADER : _HEADER + 8], "little")
    if present & ~(XCR0_BASE | cpu.xcr0_mask):
        raise StateError(
            "vCPU state has extended registers that this CPU model has not",
            hint="save it from a machine whose CPU model is this one's: x86-64-v2, x86-64-v3",
            components=hex(present),
        )
    avx = present & x86.XCR0_AVX
    if avx and len(area) < state.XSAVE_AVX_SIZE:
        raise StateError(
            "an XSAVE area is cut short", expected=state.XSAVE_AVX_SIZE, seen=len(area)
        )
    # MXCSR is always taken from the area (SDM vol. 1, 13.8.1).
    cpu.mxcsr = int.from_bytes(area[24:28], "little") & 0xFFFF
    legacy = area if present & x86.XCR0_X87 else state.XSAVE_RESET
    status = int.from_bytes(legacy[2:4], "little")
    top = status >> 11 & 7
    cpu.fcw = int.from_bytes(legacy[0:2], "little")
    cpu.fsw = status & ~0x3800
    cpu.ftop = top
    cpu.ftags = legacy[4]
    cpu.fpu_opcode = int.from_bytes(legacy[6:8], "little")
    cpu.fpu_ip = int.from_bytes(legacy[8:16], "little")
    cpu.fpu_dp = int.from_bytes(legacy[16:24], "little")
    for n in range(8):
        value = int.from_bytes(legacy[32 + 16 * n : 42 + 16 * n], "little")
        cpu.fpr[(top + n) & 7] = value
    for n in range(16):
        start = 160 + 16 * n
        value = int.from_bytes(area[start : start + 16], "little")
        cpu.xmm[n] = value if present & x86.XCR0_SSE else 0
        upper = area[state.AVX_AREA + 16 * n :][:16] if avx else b""
        cpu.ymm_high[n] = int.from_bytes(upper, "little")


# --- the whole ---------------------------------------------------------------


def _read_msrs(cpu: Any) -> dict[int, int]:
    """Return the MSRs; IA32_SPEC_CTRL only where it was written, as not every engine has it."""
    msrs = {number: int(getattr(cpu, name)) for number, name in MSRS.items()}
    if cpu.spec_ctrl:
        msrs[IA32_SPEC_CTRL] = cpu.spec_ctrl
    return msrs


def read_state(cpu: Any, host_tsc: int = 0) -> CpuState:
    """Return the state of a view of a `Cpu`; `host_tsc` is the host's time-stamp counter now."""
    segments: dict[str, Any] = {name: _read_segment(cpu.seg[n]) for n, name in enumerate(SEGMENTS)}
    shadow = 0
    if cpu.shadow & SHADOW_STI:
        shadow |= state.SHADOW_STI
    if cpu.shadow & SHADOW_SS:
        shadow |= state.SHADOW_MOV_SS
    event = None
    if cpu.inject:
        vector = cpu.inject - 1
        kind = state.EVENT_NMI if vector == x86.NMI else state.EVENT_INTERRUPT
        event = PendingEvent(kind, vector)
    return CpuState(
        gpr=tuple(cpu.regs),
        rip=cpu.rip,
        rflags=read_rflags(cpu),
        **segments,
        gdtr=Table(cpu.gdt_base, cpu.gdt_limit),
        idtr=Table(cpu.idt_base, cpu.idt_limit),
        **{name: getattr(cpu, name) for name in CONTROL},
        **{name: cpu.dr[n] for name, n in DEBUG.items()},
        xsave=read_xsave(cpu),
        msrs=_read_msrs(cpu),
        tsc=(host_tsc + cpu.counter_offset) & U64,
        interrupt_shadow=shadow,
        nmi_masked=bool(cpu.nmi_blocked),
        pending_event=event,
        mp_state=state.MP_HALTED if cpu.halted else state.MP_RUNNABLE,
    )


def write_state(cpu: Any, value: CpuState, host_tsc: int = 0) -> None:
    """Replace the state of a view of a `Cpu`; its TLB must be flushed before it runs.

    An exception or a software interrupt under delivery is not taken: RIP is
    still on the instruction, which raises it again. Raises StateError for what
    this engine cannot have.
    """
    if value.rflags & x86.VM:
        raise StateError("vCPU state is in virtual-8086 mode, which this engine has not")
    if value.xcr0 & ~(XCR0_BASE | cpu.xcr0_mask):
        raise StateError("vCPU state enables unknown extended registers", xcr0=hex(value.xcr0))
    write_xsave(cpu, value.xsave)
    for n, register in enumerate(value.gpr):
        cpu.regs[n] = register
    cpu.rip = value.rip
    write_rflags(cpu, value.rflags)
    for n, name in enumerate(SEGMENTS):
        _write_segment(cpu.seg[n], getattr(value, name))
    cpu.gdt_base, cpu.gdt_limit = value.gdtr.base, value.gdtr.limit
    cpu.idt_base, cpu.idt_limit = value.idtr.base, value.idtr.limit
    for name in CONTROL:
        setattr(cpu, name, getattr(value, name))
    for name, n in DEBUG.items():
        cpu.dr[n] = getattr(value, name)
    for number, name in MSRS.items():
        if number in value.msrs:
            setattr(cpu, name, value.msrs[number])
    cpu.spec_ctrl = value.msrs.get(IA32_SPEC_CTRL, 0)
    cpu.counter_offset = value.tsc - host_tsc
    shadow = SHADOW_STI if value.interrupt_shadow & state.SHADOW_STI else 0
    if value.interrupt_shadow & state.SHADOW_MOV_SS:
        shadow |= SHADOW_SS
    cpu.shadow = shadow
    cpu.nmi_blocked = int(value.nmi_masked)
    cpu.halted = int(value.mp_state == state.MP_HALTED)
    event = value.pending_event
    external = event is not None and event.kind in (state.EVENT_INTERRUPT, state.EVENT_NMI)
    cpu.inject = event.vector + 1 if event is not None and external else 0
    for name in ("delivering", "debug_pending", "stepping", "external_done", "external_cursor"):
        setattr(cpu, name, 0)
    _derive_mode(cpu)
