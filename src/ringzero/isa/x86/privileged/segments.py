"""Instructions on segment registers and descriptor tables (Intel SDM vol. 2, each name)."""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import (
    ATTR_P,
    ATTR_S,
    ATTR_TYPE,
    CR4_FSGSBASE,
    CR4_UMIP,
    CS,
    DS,
    ES,
    FS,
    GP,
    GS,
    LDTR,
    NP,
    RSP,
    SHADOW_SS,
    SS,
    TR,
    UD,
    ZF,
    Cpu,
)
from ringzero.isa.x86.insn.control import push_value, set_stack_pointer, stack_load
from ringzero.isa.x86.privileged.descriptors import (
    CALL_GATE16,
    CALL_GATE32,
    LDT,
    TASK_GATE,
    TSS16_AVAILABLE,
    TSS16_BUSY,
    TSS32_AVAILABLE,
    TSS32_BUSY,
    TYPE_CODE,
    TYPE_CONFORMING,
    TYPE_READABLE,
    TYPE_WRITABLE,
    descriptor_address,
    descriptor_attributes,
    descriptor_base,
    descriptor_limit,
    dpl_of,
    is_canonical,
    is_null,
    load_segment,
    long_mode_active,
    protected_mode,
    selector_fault,
    set_segment,
)
from ringzero.isa.x86.privileged.faults import raise_gp0, raise_ud
from ringzero.isa.x86.privileged.mmu import read_system, write_system
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import native, staged, u8, u16, u32, u64

# --- MOV, PUSH, POP, LDS ... -------------------------------------------------


@instruction("8C /r : Ev Sw", name="mov")
def mov_from_segment(m: Operation) -> None:
    """MOV from a segment register: 16 bits to memory, zero-extended to a register."""
    number = m.register_number(1)
    if number > GS:
        m.fault(UD)
    selector = m.cpu.seg[number].selector
    if m.memory:
        m.store(u16, m.address(0), u16(selector))
    else:
        m.write(0, m.T(selector))


@instruction("8E /r : Sw Ew", ends=True, name="mov")
def mov_to_segment(m: Operation) -> None:
    """MOV to a segment register; CS is #UD, SS holds off interrupts for one instruction."""
    number = u32(m.register_number(0))
    if number > GS or number == CS:
        m.fault(UD)
    load_segment(m.cpu, number, u32(m.read(1)))
    if number == SS:
        m.cpu.shadow = SHADOW_SS
    m.stop_block()


def _push_pop(number: int, push_form: str, pop_form: str, **attributes: Any) -> None:
    def push_segment(m: Operation) -> None:
        """PUSH of a segment register, zero-extended to the operand size."""
        push_value(m, m.T(m.cpu.seg[number].selector))

    instruction(push_form, name="push", sized=True, d64=True, **attributes)(push_segment)
    if not pop_form:
        return

    def pop_segment(m: Operation) -> None:
        """POP of a segment register; SS holds off interrupts for one instruction."""
        pointer = m.get(RSP, u64)
        selector = u32(stack_load(m, m.T, pointer)) & 0xFFFF
        load_segment(m.cpu, number, selector)
        set_stack_pointer(m, pointer + m.T.size)
        if number == SS:
            m.cpu.shadow = SHADOW_SS
        m.stop_block()

    instruction(pop_form, name="pop", sized=True, d64=True, d66=True, ends=True, **attributes)(
        pop_segment
    )


_push_pop(ES, "06", "07", no64=True)
_push_pop(CS, "0E", "", no64=True)
_push_pop(SS, "16", "17", no64=True)
_push_pop(DS, "1E", "1F", no64=True)
_push_pop(FS, "0F A0", "0F A1")
_push_pop(GS, "0F A8", "0F A9")


def _load_pointer(number: int, name: str, form: str, **attributes: Any) -> None:
    def load_far_pointer(m: Operation) -> None:
        """LDS, LES, LFS, LGS, LSS: a far pointer from memory."""
        offset = m.load(m.T, m.address(1, m.T.size))
        m.displace(u64(m.T.size))
        load_segment(m.cpu, number, u32(m.load(u16, m.address(1, 2))))
        m.write(0, offset)
        m.stop_block()

    instruction(form, name=name, ends=True, **attributes)(load_far_pointer)


_load_pointer(ES, "les", "C4 /r:m : Gv M", no64=True)
_load_pointer(DS, "lds", "C5 /r:m : Gv M", no64=True)
_load_pointer(SS, "lss", "0F B2 /r:m : Gv M")
_load_pointer(FS, "lfs", "0F B4 /r:m : Gv M")
_load_pointer(GS, "lgs", "0F B5 /r:m : Gv M")


# --- FS and GS bases ---------------------------------------------------------


def _wide_or_double(m: Operation) -> Any:
    return u64 if m.size == 64 else u32


def _bases(number: int, name: str, read_digit: int, write_digit: int) -> None:
    def read_base(m: Operation) -> None:
        """RDFSBASE, RDGSBASE."""
        if (m.cpu.cr4 & CR4_FSGSBASE) == 0:
            m.fault(UD)
        m.write(0, _wide_or_double(m)(m.cpu.seg[number].base))

    def write_base(m: Operation) -> None:
        """WRFSBASE, WRGSBASE: #GP(0) when the base is not canonical."""
        if (m.cpu.cr4 & CR4_FSGSBASE) == 0:
            m.fault(UD)
        base = u64(m.read(0))
        if not is_canonical(base):
            m.fault(GP, 0)
        m.cpu.seg[number].base = base

    instruction(f"F3 0F AE /{read_digit}:r : Ry", name=f"rd{name}base", only64=True, sized=True)(
        read_base
    )
    instruction(f"F3 0F AE /{write_digit}:r : Ry", name=f"wr{name}base", only64=True, sized=True)(
        write_base
    )


_bases(FS, "fs", 0, 2)
_bases(GS, "gs", 1, 3)


# --- descriptor-table registers ----------------------------------------------


@staged
def _check_umip(m: Operation) -> None:
    if (m.cpu.cr4 & CR4_UMIP) != 0 and m.cpu.cpl != 0:
        m.fault(GP, 0)


@staged
def _store_table(m: Operation, limit: Any, base: Any) -> None:
    _check_umip(m)
    where = m.address(0, 6)
    store_bytes(m, where, limit, 2)
    if m.long_mode():
        store_bytes(m, where + 2, base, 8)
    else:
        store_bytes(m, where + 2, base, 4)


@staged
def store_bytes(m: Operation, where: Any, value: Any, count: int) -> None:
    """Store byte by byte: SGDT and SIDT are not checked for alignment (nor on AMD processors)."""
    for n in range(count):
        m.store(u8, where + n, u8(value >> (8 * n)))


@staged
def _load_table(m: Operation) -> Any:
    """Return limit (u32) and base (u64) of the operand of LGDT and LIDT."""
    where = m.address(0)
    limit = u32(m.load(u16, where))
    base = u64(0)
    if m.long_mode():
        base = m.load(u64, where + 2)
        if not is_canonical(base):
            m.fault(GP, 0)
    else:
        base = u64(m.load(u32, where + 2))
        if m.size == 16:
            base = base & 0xFFFFFF
    return limit, base


@instruction("0F 01 /0:m : M")
def sgdt(m: Operation) -> None:
    """SGDT."""
    _store_table(m, m.cpu.gdt_limit, m.cpu.gdt_base)


@instruction("0F 01 /1:m : M")
def sidt(m: Operation) -> None:
    """SIDT."""
    _store_table(m, m.cpu.idt_limit, m.cpu.idt_base)


@instruction("0F 01 /2:m : M", sized=True, privileged=True, ends=True)
def lgdt(m: Operation) -> None:
    """LGDT: 24 bits of base with a 16-bit operand outside 64-bit mode."""
    limit, base = _load_table(m)
    m.cpu.gdt_limit = limit
    m.cpu.gdt_base = base
    m.stop_block()


@instruction("0F 01 /3:m : M", sized=True, privileged=True, ends=True)
def lidt(m: Operation) -> None:
    """LIDT."""
    limit, base = _load_table(m)
    m.cpu.idt_limit = limit
    m.cpu.idt_base = base
    m.stop_block()


@staged
def _store_selector(m: Operation, selector: Any) -> None:
    if not protected_mode(m.cpu):
        m.fault(UD)
    _check_umip(m)
    if m.memory:
        m.store(u16, m.address(0), u16(selector))
    else:
        m.write(0, m.T(selector))


@instruction("0F 00 /0 : Ev")
def sldt(m: Operation) -> None:
    """SLDT."""
    _store_selector(m, m.cpu.seg[LDTR].selector)


@instruction("0F 00 /1 : Ev", name="str")
def store_task(m: Operation) -> None:
    """STR."""
    _store_selector(m, m.cpu.seg[TR].selector)


@native(inline="never")
def read_system_descriptor(cpu: Cpu, selector: u32) -> u64:
    """Return the low half of a system descriptor in the GDT, all of which must be within limits."""
    address = descriptor_address(cpu, selector)
    if long_mode_active(cpu):
        address = descriptor_address(cpu, selector + 8)
    if selector & 4 != 0 or address == 0:
        selector_fault(cpu, GP, selector)
    return u64(read_system(cpu, u64, cpu.gdt_base + u64(selector & 0xFFF8)))


@native(inline="never")
def read_upper_half(cpu: Cpu, selector: u32, descriptor: u64) -> u64:
    """Return the second half of an LDT's or TSS's descriptor, 0 outside IA-32e mode.

    #GP(selector) where its type is not 0, or the whole base is not canonical.
    """
    if not long_mode_active(cpu):
        return u64(0)
    high = u64(read_system(cpu, u64, cpu.gdt_base + u64(selector & 0xFFF8) + 8))
    if high & (0x1F << 40) != 0:
        selector_fault(cpu, GP, selector)
    if not is_canonical(descriptor_base(descriptor) | (high << 32)):
        selector_fault(cpu, GP, selector)
    return high


@native(inline="never")
def set_system_segment(cpu: Cpu, number: u32, selector: u32, descriptor: u64) -> None:
    """Load LDTR or TR; in IA-32e mode the descriptor's second half holds bits 63:32 of the base."""
    high = read_upper_half(cpu, selector, descriptor)
    set_segment(cpu, number, selector, descriptor)
    cpu.seg[number].base = cpu.seg[number].base | (high << 32)


@native(inline="never")
def load_local_table(cpu: Cpu, selector: u32) -> None:
    """LLDT."""
    if not protected_mode(cpu):
        raise_ud(cpu)
    if cpu.cpl != 0:
        raise_gp0(cpu)
    if is_null(selector):
        cpu.seg[LDTR].selector = selector
        cpu.seg[LDTR].attributes = 0
        cpu.seg[LDTR].limit = 0
        return
    descriptor = read_system_descriptor(cpu, selector)
    attributes = descriptor_attributes(descriptor)
    if attributes & (ATTR_S | ATTR_TYPE) != LDT:
        selector_fault(cpu, GP, selector)
    if attributes & ATTR_P == 0:
        selector_fault(cpu, NP, selector)
    set_system_segment(cpu, LDTR, selector, descriptor)


@native(inline="never")
def load_task(cpu: Cpu, selector: u32) -> None:
    """LTR: the TSS becomes busy."""
    if not protected_mode(cpu):
        raise_ud(cpu)
    if cpu.cpl != 0 or is_null(selector):
        raise_gp0(cpu)
    descriptor = read_system_descriptor(cpu, selector)
    attributes = descriptor_attributes(descriptor)
    kind = attributes & (ATTR_S | ATTR_TYPE)
    if kind != TSS32_AVAILABLE and (kind != TSS16_AVAILABLE or long_mode_active(cpu)):
        selector_fault(cpu, GP, selector)
    if attributes & ATTR_P == 0:
        selector_fault(cpu, NP, selector)
    set_busy(cpu, selector, descriptor)


@native(inline="never")
def set_busy(cpu: Cpu, selector: u32, descriptor: u64) -> None:
    """Load TR and mark its TSS busy, in the table and in the register."""
    busy = descriptor | (TSS16_BUSY & ~TSS16_AVAILABLE) << 40
    address = cpu.gdt_base + u64(selector & 0xFFF8) + 5
    read_upper_half(cpu, selector, descriptor)
    write_system(cpu, address, u8(busy >> 40))
    set_system_segment(cpu, TR, selector, busy)


@instruction("0F 00 /2 : Ew", ends=True)
def lldt(m: Operation) -> None:
    """LLDT."""
    _check_system(m)
    load_local_table(m.cpu, u32(m.read(0)))
    m.stop_block()


@instruction("0F 00 /3 : Ew", ends=True)
def ltr(m: Operation) -> None:
    """LTR."""
    _check_system(m)
    load_task(m.cpu, u32(m.read(0)))
    m.stop_block()


@staged
def _check_system(m: Operation) -> None:
    """#UD outside protected mode, #GP(0) above CPL 0: both come before the operand is read."""
    if not protected_mode(m.cpu):
        m.fault(UD)
    if m.cpu.cpl != 0:
        m.fault(GP, 0)


# --- questions about descriptors ---------------------------------------------


@native(inline="never")
def query_descriptor(cpu: Cpu, selector: u32) -> u64:
    """Return a descriptor for VERR, VERW, LAR and LSL, or 0 where there is none in limits."""
    if is_null(selector):
        return u64(0)
    address = descriptor_address(cpu, selector)
    if address == 0:
        return u64(0)
    return u64(read_system(cpu, u64, address))


@staged
def _visible(cpu: Any, selector: Any, attributes: Any) -> Any:
    """Return whether CPL and RPL may know of a segment that is not conforming code."""
    conforming = ATTR_S | TYPE_CODE | TYPE_CONFORMING
    dpl = dpl_of(attributes)
    return ((attributes & conforming) == conforming) | ((cpu.cpl <= dpl) & ((selector & 3) <= dpl))


@native(inline="never")
def verify_segment(cpu: Cpu, selector: u32, write: u32) -> u64:
    """VERR and VERW: return ZF (at its RFLAGS position), set when CPL may read (write) it.

    Whether the segment is present does not matter (SDM vol. 2B, VERR).
    """
    descriptor = query_descriptor(cpu, selector)
    attributes = descriptor_attributes(descriptor)
    if attributes & ATTR_S == 0 or not _visible(cpu, selector, attributes):
        return u64(0)
    code = attributes & TYPE_CODE != 0
    if write != 0:
        if code or attributes & TYPE_WRITABLE == 0:
            return u64(0)
    elif code and attributes & TYPE_READABLE == 0:
        return u64(0)
    return u64(ZF)


@native(inline="never")
def queryable(cpu: Cpu, selector: u32, descriptor: u64, gates: u32) -> u64:
    """LAR (`gates` 1) and LSL (0): return ZF when the descriptor's type and DPL allow it."""
    attributes = descriptor_attributes(descriptor)
    if descriptor == 0 or not _visible(cpu, selector, attributes):
        return u64(0)
    if attributes & ATTR_S:
        return u64(ZF)
    kind = attributes & ATTR_TYPE
    known = kind == LDT or kind == TSS32_AVAILABLE or kind == TSS32_BUSY
    if gates != 0:
        known = known or kind == CALL_GATE32
    if not long_mode_active(cpu):
        known = known or kind == TSS16_AVAILABLE or kind == TSS16_BUSY
        if gates != 0:
            known = known or kind == CALL_GATE16 or kind == TASK_GATE
    return u64(ZF) if known else u64(0)


@staged
def _need_protected(m: Operation) -> None:
    if not protected_mode(m.cpu):
        m.fault(UD)


@instruction("0F 00 /4 : Ew")
def verr(m: Operation) -> None:
    """VERR."""
    _need_protected(m)
    m.set_status(verify_segment(m.cpu, u32(m.read(0)), 0), ZF)


@instruction("0F 00 /5 : Ew")
def verw(m: Operation) -> None:
    """VERW."""
    _need_protected(m)
    m.set_status(verify_segment(m.cpu, u32(m.read(0)), 1), ZF)


@instruction("0F 02 /r : Gv Ew")
def lar(m: Operation) -> None:
    """LAR: the descriptor's second doubleword, masked with 00FxFF00h (x is undefined: as it is)."""
    _need_protected(m)
    selector = u32(m.read(1))
    descriptor = query_descriptor(m.cpu, selector)
    found = queryable(m.cpu, selector, descriptor, 1)
    if found != 0:
        m.write(0, m.T((descriptor >> 32) & 0xFFFF00))
    m.set_status(found, ZF)


@instruction("0F 03 /r : Gv Ew")
def lsl(m: Operation) -> None:
    """LSL: the limit in bytes."""
    _need_protected(m)
    selector = u32(m.read(1))
    descriptor = query_descriptor(m.cpu, selector)
    found = queryable(m.cpu, selector, descriptor, 0)
    if found != 0:
        m.write(0, m.T(descriptor_limit(descriptor)))
    m.set_status(found, ZF)


@instruction("63 /r : Ew Gw", no64=True, rmw=True)
def arpl(m: Operation) -> None:
    """ARPL."""
    _need_protected(m)
    selector = m.read(0)
    wanted = m.read(1) & 3
    adjusted = (selector & 3) < wanted
    if adjusted:
        m.write(0, (selector & 0xFFFC) | wanted)
    m.set_status(u64(adjusted) << 6, ZF)
