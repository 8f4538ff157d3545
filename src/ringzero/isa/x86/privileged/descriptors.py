"""Segment descriptors: reading and checking them, loading segment registers, and `Cpu.mode`.

Intel SDM vol. 3A, chapter 3.4 (descriptors) and 5 (protection). Everything
here is called from instructions and from exception delivery. A check that
fails raises its exception before anything has changed. The error code is the
selector without its RPL; `exceptions.deliver_fault` adds the EXT bit.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import (
    ATTR_DB,
    ATTR_DPL_SHIFT,
    ATTR_G,
    ATTR_L,
    ATTR_P,
    ATTR_S,
    ATTR_TYPE,
    CR0_PE,
    CS,
    DS,
    EFER_LMA,
    ES,
    FS,
    FS_LIMITED,
    GP,
    GS,
    GS_LIMITED,
    LDTR,
    MODE_16,
    MODE_32,
    MODE_64,
    NP,
    RBP,
    RSP,
    SS,
    SS_FAULT,
    TR,
    TS,
    Cpu,
    Insn,
    Segment,
)
from ringzero.isa.x86.privileged.alignment import select_tlb
from ringzero.isa.x86.privileged.faults import raise_fault_code, raise_gp0, raise_ss0
from ringzero.isa.x86.privileged.lookaside import flush_jump_cache
from ringzero.isa.x86.privileged.mmu import read_system, write_system
from ringzero.native import (
    address_of,
    boolean,
    i64,
    native,
    pointer,
    select,
    staged,
    u8,
    u16,
    u32,
    u64,
)

# Bits of a code or data segment's type (SDM vol. 3A, table 3-1).
TYPE_ACCESSED, TYPE_WRITABLE, TYPE_EXPAND_DOWN, TYPE_CODE = 1, 2, 4, 8
TYPE_READABLE, TYPE_CONFORMING = 2, 4

# Types of system descriptors (SDM vol. 3A, table 3-2); 64-bit ones share the 32-bit numbers.
TSS16_AVAILABLE, LDT, TSS16_BUSY, CALL_GATE16 = 1, 2, 3, 4
TASK_GATE, INTERRUPT_GATE16, TRAP_GATE16 = 5, 6, 7
TSS32_AVAILABLE, TSS32_BUSY, CALL_GATE32, INTERRUPT_GATE32, TRAP_GATE32 = 9, 11, 12, 14, 15

# Bits 8-11 of a descriptor's attribute word belong to the limit.
ATTRIBUTE_MASK = 0xF0FF

# Flat segments as SYSCALL, SYSENTER and their returns load them (SDM vol. 2B, SYSCALL).
FLAT_CODE64 = 0xB | ATTR_S | ATTR_P | ATTR_L | ATTR_G
FLAT_CODE32 = 0xB | ATTR_S | ATTR_P | ATTR_DB | ATTR_G
FLAT_DATA = 0x3 | ATTR_S | ATTR_P | ATTR_DB | ATTR_G


@staged
def descriptor_attributes(descriptor: Any) -> Any:
    """Return a descriptor's attributes (u32) as `Segment.attributes` holds them."""
    return u32(descriptor >> 40) & ATTRIBUTE_MASK


@staged
def descriptor_base(descriptor: Any) -> Any:
    """Return the base (u64, 32 bits) of an 8-byte descriptor."""
    return ((descriptor >> 16) & 0xFFFFFF) | ((descriptor >> 32) & 0xFF000000)


@staged
def descriptor_limit(descriptor: Any) -> Any:
    """Return the limit in bytes (u32), scaled by G."""
    limit = u32(descriptor & 0xFFFF) | (u32(descriptor >> 32) & 0xF0000)
    return (limit << 12) | 0xFFF if (descriptor & (1 << 55)) != 0 else limit


@staged
def dpl_of(attributes: Any) -> Any:
    """Return a segment's descriptor privilege level (u32)."""
    return (attributes >> ATTR_DPL_SHIFT) & 3


@staged
def is_canonical(address: Any) -> Any:
    """Return whether bits 63:47 of a linear address are all alike."""
    return u64(i64(address << 16) >> 16) == address


@staged
def is_null(selector: Any) -> Any:
    """Return whether a selector names the null descriptor, whatever its RPL."""
    return (selector & 0xFFFC) == 0


@staged
def is_code(attributes: Any) -> Any:
    """Return whether the attributes are those of a code segment."""
    return (attributes & (ATTR_S | TYPE_CODE)) == (ATTR_S | TYPE_CODE)


@staged
def is_expand_down(attributes: Any) -> Any:
    """Return whether the attributes are those of an expand-down data segment."""
    wanted = ATTR_S | TYPE_EXPAND_DOWN
    return (attributes & (wanted | TYPE_CODE)) == wanted


@staged
def is_writable_data(attributes: Any) -> Any:
    """Return whether the attributes are those of a writable data segment."""
    wanted = ATTR_S | TYPE_WRITABLE
    return (attributes & (wanted | TYPE_CODE)) == wanted


@staged
def long_mode_active(cpu: Any) -> Any:
    """Return whether the processor is in IA-32e mode (64-bit or compatibility)."""
    return (cpu.efer & EFER_LMA) != 0


@staged
def protected_mode(cpu: Any) -> Any:
    """Return whether CR0.PE is set."""
    return (cpu.cr0 & CR0_PE) != 0


@native(noreturn=True)
def selector_fault(cpu: Cpu, vector: u32, selector: u32) -> None:
    """Raise an exception whose error code is a selector."""
    raise_fault_code(cpu, vector, u64(selector & 0xFFFC))


@native(inline="never")
def descriptor_address(cpu: Cpu, selector: u32) -> u64:
    """Return the linear address of a selector's descriptor, or 0 when it is beyond its table."""
    offset = selector & 0xFFF8
    base = u64(cpu.gdt_base)
    limit = u32(cpu.gdt_limit)
    if selector & 4:
        if cpu.seg[LDTR].attributes & ATTR_P == 0:
            return u64(0)
        base = cpu.seg[LDTR].base
        limit = cpu.seg[LDTR].limit
    if offset + 7 > limit:
        return u64(0)
    return base + u64(offset)


@native(inline="never")
def read_descriptor(cpu: Cpu, selector: u32, vector: u32) -> u64:
    """Return the 8 bytes of a selector's descriptor; raise `vector` when it is out of limits."""
    address = descriptor_address(cpu, selector)
    if address == 0:
        selector_fault(cpu, vector, selector)
    return u64(read_system(cpu, u64, address))


@native(inline="never")
def mark_accessed(cpu: Cpu, selector: u32, descriptor: u64) -> u64:
    """Set the accessed bit of a code or data descriptor in its table; return the descriptor."""
    if descriptor & (1 << 40) == 0:
        address = descriptor_address(cpu, selector)
        write_system(cpu, address + 5, u8(descriptor >> 40) | TYPE_ACCESSED)
    return descriptor | (1 << 40)


@native(inline="never")
def set_segment(cpu: Cpu, number: u32, selector: u32, descriptor: u64) -> None:
    """Load a segment register's visible and hidden parts from a checked descriptor."""
    segment = cpu.seg[number]
    segment.selector = selector
    segment.base = descriptor_base(descriptor)
    segment.limit = descriptor_limit(descriptor)
    segment.attributes = descriptor_attributes(descriptor)


@staged
def load_flat(cpu: Any, number: Any, selector: Any, attributes: Any) -> None:
    """Load a segment register with a fixed flat 4 GiB segment."""
    segment = cpu.seg[number]
    segment.selector = selector & 0xFFFF
    segment.base = 0
    segment.limit = 0xFFFFFFFF
    segment.attributes = attributes


@native(inline="never")
def set_flat(cpu: Cpu, number: u32, selector: u32, attributes: u32) -> None:
    """The same, as a function."""
    load_flat(cpu, number, selector, attributes)


@native(inline="never")
def set_null(cpu: Cpu, number: u32, selector: u32) -> None:
    """Load a data-segment register with a null selector; its base becomes 0, as on Intel's."""
    segment = cpu.seg[number]
    segment.selector = selector
    segment.base = 0
    segment.limit = 0
    segment.attributes = 0


@native(inline="never")
def set_null_stack(cpu: Cpu, cpl: u32) -> None:
    """Load SS with the null selector of a 64-bit stack at privilege `cpl`."""
    segment = cpu.seg[SS]
    segment.selector = cpl
    segment.base = 0
    segment.limit = 0xFFFFFFFF
    segment.attributes = cpl << ATTR_DPL_SHIFT


@native(inline="never")
def update_segmented(cpu: Cpu) -> None:
    """Recompute `Cpu.segmented` and `Cpu.limited`: where bases, limits or rights matter."""
    result = u32(0)
    if cpu.mode != MODE_64:
        for number in (CS, SS, DS, ES):
            segment = cpu.seg[number]
            if segment.base != 0 or segment.limit != 0xFFFFFFFF:
                result = u32(1)
            if number != CS and (
                not is_writable_data(segment.attributes) or is_expand_down(segment.attributes)
            ):
                result = u32(1)
    if cpu.segmented != result:
        cpu.segmented = result
        cpu.stop_block = 1
    limited = u32(0)
    for number, bit in ((FS, FS_LIMITED), (GS, GS_LIMITED)):
        segment = cpu.seg[number]
        attributes = segment.attributes
        whole = segment.limit == 0xFFFFFFFF and attributes & ATTR_P != 0
        if not whole or not is_writable_data(attributes) or is_expand_down(attributes):
            limited = limited | bit
    if cpu.limited != limited:
        # Translations know by their mode which of the two they need not check.
        cpu.limited = limited
        cpu.stop_block = 1
        flush_jump_cache(cpu)


@native(inline="never")
def update_mode(cpu: Cpu) -> None:
    """Recompute what follows from CS, CPL and EFER: mode, TLB, `segmented`."""
    attributes = cpu.seg[CS].attributes
    mode = u32(MODE_16)
    if long_mode_active(cpu) and attributes & ATTR_L != 0:
        mode = u32(MODE_64)
    elif attributes & ATTR_DB:
        mode = u32(MODE_32)
    cpu.mode = mode
    select_tlb(cpu)
    cpu.jump_cache = cpu.jump_user if cpu.cpl == 3 else cpu.jump_kernel
    cpu.stop_block = 1
    update_segmented(cpu)


@native(inline="never")
def set_code_segment(cpu: Cpu, selector: u32, descriptor: u64, cpl: u32) -> None:
    """Load CS from a checked descriptor and run at privilege `cpl`."""
    set_segment(cpu, CS, (selector & 0xFFFC) | cpl, descriptor)
    cpu.cpl = cpl
    update_mode(cpu)


@native(inline="never")
def set_real_segment(cpu: Cpu, number: u32, selector: u32) -> None:
    """Load a segment register in real-address mode: limit and attributes stay (SDM 3A, 20.1.1)."""
    cpu.seg[number].selector = selector & 0xFFFF
    cpu.seg[number].base = u64(selector & 0xFFFF) << 4
    update_segmented(cpu)


@native(inline="never")
def check_target(cpu: Cpu, descriptor: u64, offset: u64) -> None:
    """#GP(0) unless `offset` is canonical (64-bit code) or within the code segment's limit."""
    if long_mode_active(cpu) and descriptor & (1 << 53) != 0:
        if not is_canonical(offset):
            raise_gp0(cpu)
    elif offset > u64(descriptor_limit(descriptor)):
        raise_gp0(cpu)


@native(inline="never")
def check_stack_descriptor(cpu: Cpu, selector: u32, cpl: u32, vector: u32) -> u64:
    """Return the descriptor of a non-null SS selector, checked for use at privilege `cpl`.

    Raises `vector` (#GP, or #TS on a stack switch), #SS when it is not present
    (SDM vol. 3A, 5.7).
    """
    descriptor = read_descriptor(cpu, selector, vector)
    attributes = descriptor_attributes(descriptor)
    if selector & 3 != cpl or dpl_of(attributes) != cpl or not is_writable_data(attributes):
        selector_fault(cpu, vector, selector)
    if attributes & ATTR_P == 0:
        selector_fault(cpu, SS_FAULT, selector)
    return descriptor


@native(inline="never")
def load_stack_segment(cpu: Cpu, selector: u32) -> None:
    """Load SS in protected mode, as MOV, POP and LSS do."""
    if is_null(selector):
        if cpu.mode != MODE_64 or cpu.cpl == 3 or selector & 3 != cpu.cpl:
            raise_gp0(cpu)
        set_null_stack(cpu, cpu.cpl)
        return
    descriptor = check_stack_descriptor(cpu, selector, cpu.cpl, GP)
    descriptor = mark_accessed(cpu, selector, descriptor)
    set_segment(cpu, SS, selector, descriptor)
    update_segmented(cpu)


@native(inline="never")
def load_data_segment(cpu: Cpu, number: u32, selector: u32) -> None:
    """Load DS, ES, FS or GS in protected mode (SDM vol. 2B, MOV; vol. 3A, 5.6)."""
    if is_null(selector):
        set_null(cpu, number, selector)
        update_segmented(cpu)
        return
    descriptor = read_descriptor(cpu, selector, GP)
    attributes = descriptor_attributes(descriptor)
    kind = attributes & ATTR_TYPE
    if attributes & ATTR_S == 0 or kind & (TYPE_CODE | TYPE_READABLE) == TYPE_CODE:
        selector_fault(cpu, GP, selector)
    if kind & (TYPE_CODE | TYPE_CONFORMING) != (TYPE_CODE | TYPE_CONFORMING):
        dpl = dpl_of(attributes)
        if selector & 3 > dpl or cpu.cpl > dpl:
            selector_fault(cpu, GP, selector)
    if attributes & ATTR_P == 0:
        selector_fault(cpu, NP, selector)
    descriptor = mark_accessed(cpu, selector, descriptor)
    set_segment(cpu, number, selector, descriptor)
    update_segmented(cpu)


@native(inline="never")
def load_segment(cpu: Cpu, number: u32, selector: u32) -> None:
    """Load any segment register but CS."""
    if not protected_mode(cpu):
        set_real_segment(cpu, number, selector)
    elif number == SS:
        load_stack_segment(cpu, selector)
    else:
        load_data_segment(cpu, number, selector)


@native(inline="never")
def drop_inaccessible_segments(cpu: Cpu) -> None:
    """After a return outwards: make unusable what CPL may no longer use (SDM vol. 3A, 5.8.6)."""
    for number in (ES, DS, FS, GS):
        attributes = cpu.seg[number].attributes
        conforming = ATTR_S | TYPE_CODE | TYPE_CONFORMING
        if (
            attributes & ATTR_P != 0
            and attributes & conforming != conforming
            and dpl_of(attributes) < cpu.cpl
        ):
            cpu.seg[number].selector = 0
            cpu.seg[number].attributes = 0
            cpu.seg[number].limit = 0
    update_segmented(cpu)


@native(inline="never")
def inner_stack_offset(cpu: Cpu, level: u32) -> u32:
    """Return the offset in the TSS of the stack pointer for privilege `level`, checked.

    Raises #TS(TR) when the TSS is too small for it. SDM vol. 3A, 7.2.1, 7.6, 7.7.
    """
    kind = cpu.seg[TR].attributes & ATTR_TYPE
    offset = u32(4) + level * 8
    last = offset + 5
    if long_mode_active(cpu):
        last = offset + 7
    elif kind == TSS16_BUSY or kind == TSS16_AVAILABLE:
        offset = u32(2) + level * 4
        last = offset + 3
    if last > cpu.seg[TR].limit:
        selector_fault(cpu, TS, cpu.seg[TR].selector)
    return offset


@native(inline="never")
def inner_stack_pointer(cpu: Cpu, level: u32) -> u64:
    """Return the stack pointer that the TSS holds for an inner privilege level."""
    address = cpu.seg[TR].base + u64(inner_stack_offset(cpu, level))
    if long_mode_active(cpu):
        return u64(read_system(cpu, u64, address))
    kind = cpu.seg[TR].attributes & ATTR_TYPE
    if kind == TSS16_BUSY or kind == TSS16_AVAILABLE:
        return u64(read_system(cpu, u16, address))
    return u64(read_system(cpu, u32, address))


@native(inline="never")
def inner_stack_selector(cpu: Cpu, level: u32) -> u32:
    """Return the SS selector that a 16 or 32-bit TSS holds for an inner privilege level."""
    address = cpu.seg[TR].base + u64(inner_stack_offset(cpu, level))
    kind = cpu.seg[TR].attributes & ATTR_TYPE
    if kind == TSS16_BUSY or kind == TSS16_AVAILABLE:
        return u32(read_system(cpu, u16, address + 2))
    return u32(read_system(cpu, u16, address + 4))


@native
def within_limit(limit: u32, attributes: u32, offset: u64, size: u64) -> boolean:
    """Return whether `size` bytes at a 32-bit `offset` lie in a segment (SDM vol. 3A, 5.3).

    An access that wraps at 4 GiB is beyond the limit of a 4 GiB segment too.
    """
    last = offset + size - 1
    if is_expand_down(attributes):
        top = u64(0xFFFF)
        if attributes & ATTR_DB:
            top = u64(0xFFFFFFFF)
        return offset > u64(limit) and last <= top
    return last <= u64(limit)


@native(noreturn=True)
def not_canonical(cpu: Cpu, insn: Insn, aligned: u32) -> None:
    """Raise what an operand in 64-bit mode does whose address is not canonical.

    #SS(0) when RSP or RBP is the base and no FS or GS prefix counts, else #GP(0)
    (SDM vol. 1, 3.7.4); #GP(0) too when it should be aligned and is not.
    """
    on_stack = insn.base == Cpu.offset_of("regs", RSP) or insn.base == Cpu.offset_of("regs", RBP)
    if on_stack and insn.segment == Cpu.offset_of("zero") and aligned != 0:
        raise_ss0(cpu)
    raise_gp0(cpu)


@staged
def near_target_allowed(cpu: Any, target: Any) -> Any:
    """Return whether a near branch's target is canonical, or within CS outside 64-bit mode."""
    return select(cpu.mode == MODE_64, is_canonical(target), target <= u64(cpu.seg[CS].limit))


@native
def check_near_target(cpu: Cpu, target: u64) -> None:
    """Raise #GP(0) for a near branch to a target that is not allowed."""
    if not near_target_allowed(cpu, target):
        raise_gp0(cpu)


@native(inline="never")
def segment_address(cpu: Cpu, segment: u32, offset: u64, size: u64, write: u32) -> u64:
    """Return the linear address of an operand outside 64-bit mode, its segment checked.

    `segment` is the byte offset in Cpu of a segment register. #GP(0), or #SS(0) for
    SS: beyond the limit, or a type that does not allow the access (SDM vol. 3A, 5.3, 5.4).
    """
    register = pointer(Segment, address_of(cpu) + u64(segment))
    attributes = register.attributes
    allowed = within_limit(register.limit, attributes, offset, size)
    if protected_mode(cpu):
        if write != 0:
            allowed = allowed and is_writable_data(attributes)
        allowed = allowed and attributes & ATTR_P != 0
        allowed = allowed and attributes & (TYPE_CODE | TYPE_READABLE) != TYPE_CODE
    if not allowed:
        if segment == Cpu.offset_of("seg", SS):
            raise_ss0(cpu)
        raise_gp0(cpu)
    return (register.base + offset) & 0xFFFFFFFF
