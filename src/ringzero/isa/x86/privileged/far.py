"""Far transfers: far JMP, CALL and RET, call gates, IRET, INT n (Intel SDM vol. 2, each name).

Task switches are not there: a TSS or a task gate as a target, and IRET with
NT set, raise #GP, as they all do in IA-32e mode.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86 import flags
from ringzero.isa.x86.cpu import (
    AC,
    ARITHMETIC_FLAGS,
    ATTR_DB,
    ATTR_L,
    ATTR_P,
    ATTR_S,
    BP,
    CS,
    DB,
    DF,
    GP,
    ID,
    IF,
    IOPL,
    IOPL_SHIFT,
    MODE_64,
    NP,
    NT,
    OF,
    OF_TRAP,
    RF,
    RSP,
    SS,
    TF,
    TS,
    VIF,
    VIP,
    VM,
    Cpu,
)
from ringzero.isa.x86.privileged.breakpoints import KEEP_RF, stops_at_instructions
from ringzero.isa.x86.privileged.descriptors import (
    CALL_GATE16,
    CALL_GATE32,
    TYPE_CONFORMING,
    check_stack_descriptor,
    check_target,
    descriptor_address,
    descriptor_attributes,
    dpl_of,
    drop_inaccessible_segments,
    inner_stack_pointer,
    inner_stack_selector,
    is_code,
    is_null,
    long_mode_active,
    mark_accessed,
    protected_mode,
    read_descriptor,
    selector_fault,
    set_code_segment,
    set_null_stack,
    set_real_segment,
    set_segment,
)
from ringzero.isa.x86.privileged.exceptions import EVENT_SOFTWARE, EVENT_TRAP, deliver
from ringzero.isa.x86.privileged.faults import raise_fault_code, raise_gp0
from ringzero.isa.x86.privileged.mmu import read_system
from ringzero.isa.x86.privileged.stack import (
    peek,
    push_current,
    push_flat,
    push_onto,
    set_stack_pointer,
)
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import native, select, staged, u16, u32, u64

# The L bit of an 8-byte code-segment descriptor.
L_BIT = 1 << 53


@staged
def cut(value: Any, size: Any) -> Any:
    """Cut a u64 to `size` bytes (u32: 2, 4 or 8)."""
    narrow = select(size == 2, value & 0xFFFF, value & 0xFFFFFFFF)
    return select(size == 8, value, narrow)


# --- far JMP and CALL --------------------------------------------------------


@native(inline="never")
def far_transfer(cpu: Cpu, selector: u32, offset: u64, size: u32, call: u32) -> None:
    """Far JMP (`call` 0) or CALL (1) to `selector`:`offset` with an operand of `size` bytes."""
    if not protected_mode(cpu):
        real_transfer(cpu, selector, cut(offset, size), size, call)
        return
    if is_null(selector):
        raise_gp0(cpu)
    descriptor = read_descriptor(cpu, selector, GP)
    attributes = descriptor_attributes(descriptor)
    if attributes & ATTR_S == 0:
        gate_transfer(cpu, selector, descriptor, call)
        return
    if not is_code(attributes):
        selector_fault(cpu, GP, selector)
    dpl = dpl_of(attributes)
    if attributes & TYPE_CONFORMING:
        if dpl > cpu.cpl:
            selector_fault(cpu, GP, selector)
    elif selector & 3 > cpu.cpl or dpl != cpu.cpl:
        selector_fault(cpu, GP, selector)
    check_code_present(cpu, selector, attributes)
    target = cut(offset, size)
    check_target(cpu, descriptor, target)
    pointer = cpu.regs[RSP]
    if call != 0:
        pointer = push_current(cpu, pointer, size, u64(cpu.seg[CS].selector))
        pointer = push_current(cpu, pointer, size, cpu.next_rip)
    descriptor = mark_accessed(cpu, selector, descriptor)
    if call != 0:
        set_stack_pointer(cpu, pointer)
    set_code_segment(cpu, selector, descriptor, cpu.cpl)
    cpu.next_rip = target


@native(inline="never")
def check_code_present(cpu: Cpu, selector: u32, attributes: u32) -> None:
    """#NP unless the code segment is present; #GP when both L and D are set in IA-32e mode."""
    if long_mode_active(cpu) and attributes & (ATTR_L | ATTR_DB) == ATTR_L | ATTR_DB:
        selector_fault(cpu, GP, selector)
    if attributes & ATTR_P == 0:
        selector_fault(cpu, NP, selector)


@native(inline="never")
def real_transfer(cpu: Cpu, selector: u32, offset: u64, size: u32, call: u32) -> None:
    """Far JMP or CALL in real-address mode."""
    if offset > u64(cpu.seg[CS].limit):
        raise_gp0(cpu)
    if call != 0:
        pointer = cpu.regs[RSP]
        pointer = push_current(cpu, pointer, size, u64(cpu.seg[CS].selector))
        pointer = push_current(cpu, pointer, size, cpu.next_rip)
        set_stack_pointer(cpu, pointer)
    set_real_segment(cpu, CS, selector)
    cpu.next_rip = offset


@native(inline="never")
def gate_transfer(cpu: Cpu, selector: u32, gate: u64, call: u32) -> None:
    """Far JMP or CALL through a call gate (SDM vol. 3A, 5.8.3 and 5.8.4)."""
    kind = u32(gate >> 40) & 0x1F
    long = long_mode_active(cpu)
    if kind != CALL_GATE32 and (kind != CALL_GATE16 or long):
        selector_fault(cpu, GP, selector)
    gate_dpl = u32(gate >> 45) & 3
    if gate_dpl < cpu.cpl or gate_dpl < selector & 3:
        selector_fault(cpu, GP, selector)
    if gate & (1 << 47) == 0:
        selector_fault(cpu, NP, selector)
    target = gate & 0xFFFF
    size = u32(2)
    if kind == CALL_GATE32:
        target = target | ((gate >> 32) & 0xFFFF0000)
        size = u32(4)
    if long:
        # The second half must lie in the table too, with a type field of 0.
        second = descriptor_address(cpu, selector + 8)
        if second == 0:
            selector_fault(cpu, GP, selector)
        high = read_system(cpu, u64, second)
        if high & (0x1F << 40) != 0:
            selector_fault(cpu, GP, selector)
        target = target | (high << 32)
        size = u32(8)
    code_selector = u32(gate >> 16) & 0xFFFF
    if is_null(code_selector):
        raise_gp0(cpu)
    descriptor = read_descriptor(cpu, code_selector, GP)
    attributes = descriptor_attributes(descriptor)
    dpl = dpl_of(attributes)
    if not is_code(attributes) or dpl > cpu.cpl:
        selector_fault(cpu, GP, code_selector)
    if long and attributes & (ATTR_L | ATTR_DB) != ATTR_L:
        selector_fault(cpu, GP, code_selector)
    inner = attributes & TYPE_CONFORMING == 0 and dpl < cpu.cpl
    if call == 0 and inner:
        selector_fault(cpu, GP, code_selector)
    if attributes & ATTR_P == 0:
        selector_fault(cpu, NP, code_selector)
    if call == 0:
        check_target(cpu, descriptor, target)
        descriptor = mark_accessed(cpu, code_selector, descriptor)
        set_code_segment(cpu, code_selector, descriptor, cpu.cpl)
    elif not inner:
        check_target(cpu, descriptor, target)
        pointer = cpu.regs[RSP]
        if long:
            pointer = push_flat(cpu, pointer, 8, u64(cpu.seg[CS].selector), cpu.cpl)
            pointer = push_flat(cpu, pointer, 8, cpu.next_rip, cpu.cpl)
        else:
            pointer = push_current(cpu, pointer, size, u64(cpu.seg[CS].selector))
            pointer = push_current(cpu, pointer, size, cpu.next_rip)
        descriptor = mark_accessed(cpu, code_selector, descriptor)
        set_code_segment(cpu, code_selector, descriptor, cpu.cpl)
        set_stack_pointer(cpu, pointer)
    elif long:
        check_target(cpu, descriptor, target)
        pointer = inner_stack_pointer(cpu, dpl)
        pointer = push_flat(cpu, pointer, 8, u64(cpu.seg[SS].selector), dpl)
        pointer = push_flat(cpu, pointer, 8, cpu.regs[RSP], dpl)
        pointer = push_flat(cpu, pointer, 8, u64(cpu.seg[CS].selector), dpl)
        pointer = push_flat(cpu, pointer, 8, cpu.next_rip, dpl)
        descriptor = mark_accessed(cpu, code_selector, descriptor)
        set_null_stack(cpu, dpl)
        set_code_segment(cpu, code_selector, descriptor, dpl)
        cpu.regs[RSP] = pointer
    else:
        inner_call(cpu, descriptor, code_selector, gate, size)
    cpu.next_rip = target


@native(inline="never")
def inner_call(cpu: Cpu, descriptor: u64, selector: u32, gate: u64, size: u32) -> None:
    """CALL through a 32 or 16-bit gate to an inner level: switch stacks, copy parameters."""
    target = gate & 0xFFFF
    if size == 4:
        target = target | ((gate >> 32) & 0xFFFF0000)
    level = dpl_of(descriptor_attributes(descriptor))
    stack_selector = inner_stack_selector(cpu, level)
    if is_null(stack_selector):
        raise_fault_code(cpu, TS, 0)
    stack = check_stack_descriptor(cpu, stack_selector, level, TS)
    check_target(cpu, descriptor, target)
    room = u64(stack_selector & 0xFFFC)
    pointer = inner_stack_pointer(cpu, level)
    pointer = push_onto(cpu, stack, room, pointer, size, u64(cpu.seg[SS].selector), level)
    pointer = push_onto(cpu, stack, room, pointer, size, cpu.regs[RSP], level)
    left = (gate >> 32) & 0x1F
    while left != 0:
        left -= 1
        value = peek(cpu, cpu.regs[RSP] + left * u64(size), size)
        pointer = push_onto(cpu, stack, room, pointer, size, value, level)
    pointer = push_onto(cpu, stack, room, pointer, size, u64(cpu.seg[CS].selector), level)
    pointer = push_onto(cpu, stack, room, pointer, size, cpu.next_rip, level)
    stack = mark_accessed(cpu, stack_selector, stack)
    descriptor = mark_accessed(cpu, selector, descriptor)
    set_segment(cpu, SS, stack_selector, stack)
    set_code_segment(cpu, selector, descriptor, level)
    set_stack_pointer(cpu, pointer)


# --- far RET and IRET --------------------------------------------------------


@native(inline="never")
def check_return_code(cpu: Cpu, selector: u32) -> u64:
    """Return the descriptor of a CS to return to, checked."""
    if is_null(selector):
        raise_gp0(cpu)
    descriptor = read_descriptor(cpu, selector, GP)
    attributes = descriptor_attributes(descriptor)
    level = selector & 3
    dpl = dpl_of(attributes)
    if not is_code(attributes) or level < cpu.cpl:
        selector_fault(cpu, GP, selector)
    if attributes & TYPE_CONFORMING:
        if dpl > level:
            selector_fault(cpu, GP, selector)
    elif dpl != level:
        selector_fault(cpu, GP, selector)
    check_code_present(cpu, selector, attributes)
    return descriptor


@native(inline="never")
def check_return_stack(cpu: Cpu, selector: u32, level: u32, long_target: u32) -> u64:
    """Return the descriptor of an SS to return to, marked accessed; 0 for a null one."""
    if is_null(selector):
        if long_target == 0 or level == 3 or selector & 3 != level:
            raise_gp0(cpu)
        return u64(0)
    descriptor = check_stack_descriptor(cpu, selector, level, GP)
    return mark_accessed(cpu, selector, descriptor)


@native(inline="never")
def return_to(
    cpu: Cpu, selector: u32, code: u64, stack_selector: u32, stack: u64, pointer: u64, size: u32
) -> None:
    """Load CS, SS and the stack pointer at the end of a return that pops all of them."""
    level = selector & 3
    outer = level != cpu.cpl
    if stack == 0:
        set_null_stack(cpu, level)
    else:
        set_segment(cpu, SS, stack_selector, stack)
    set_code_segment(cpu, selector, code, level)
    # A 16-bit stack takes the low word only; the rest stays, as on processors.
    set_stack_pointer(cpu, pointer)
    if outer:
        drop_inaccessible_segments(cpu)


@native(inline="never")
def far_return(cpu: Cpu, size: u32, release: u64) -> None:
    """RET far with an operand of `size` bytes, releasing `release` bytes of parameters."""
    step = u64(size)
    pointer = cpu.regs[RSP]
    target = peek(cpu, pointer, size)
    selector = u32(peek(cpu, pointer + step, size)) & 0xFFFF
    pointer = pointer + step * 2
    if not protected_mode(cpu):
        if target > u64(cpu.seg[CS].limit):
            raise_gp0(cpu)
        set_real_segment(cpu, CS, selector)
        set_stack_pointer(cpu, pointer + release)
        cpu.next_rip = target
        return
    code = check_return_code(cpu, selector)
    level = selector & 3
    if level == cpu.cpl:
        check_target(cpu, code, target)
        code = mark_accessed(cpu, selector, code)
        # The width of the stack pointer is that of the mode being left.
        set_stack_pointer(cpu, pointer + release)
        set_code_segment(cpu, selector, code, level)
    else:
        pointer = pointer + release
        outer_pointer = peek(cpu, pointer, size)
        stack_selector = u32(peek(cpu, pointer + step, size)) & 0xFFFF
        long_target = u32(long_mode_active(cpu) and code & L_BIT != 0)
        stack = check_return_stack(cpu, stack_selector, level, long_target)
        check_target(cpu, code, target)
        code = mark_accessed(cpu, selector, code)
        return_to(cpu, selector, code, stack_selector, stack, outer_pointer + release, size)
    cpu.next_rip = target


@native(inline="never")
def interrupt_return(cpu: Cpu, size: u32) -> None:
    """IRET with an operand of `size` bytes (SDM vol. 2A, IRET)."""
    step = u64(size)
    pointer = cpu.regs[RSP]
    if protected_mode(cpu) and cpu.rflags & NT != 0:
        raise_gp0(cpu)
    target = peek(cpu, pointer, size)
    selector = u32(peek(cpu, pointer + step, size)) & 0xFFFF
    image = peek(cpu, pointer + step * 2, size)
    # Virtual-8086 mode is not there (see docs/soft.md); CPL 0 alone could return to it.
    legacy = protected_mode(cpu) and not long_mode_active(cpu)
    if legacy and cpu.cpl == 0 and size == 4 and image & VM != 0:
        raise_gp0(cpu)
    if not protected_mode(cpu):
        if target > u64(cpu.seg[CS].limit):
            raise_gp0(cpu)
        set_real_segment(cpu, CS, selector)
        set_stack_pointer(cpu, pointer + step * 3)
        restore_flags(cpu, image, size, 0)
        cpu.next_rip = target
    else:
        code = check_return_code(cpu, selector)
        level = selector & 3
        old_level = u32(cpu.cpl)
        if cpu.mode != MODE_64 and level == old_level:
            check_target(cpu, code, target)
            code = mark_accessed(cpu, selector, code)
            set_stack_pointer(cpu, pointer + step * 3)
            set_code_segment(cpu, selector, code, level)
        else:
            outer_pointer = peek(cpu, pointer + step * 3, size)
            stack_selector = u32(peek(cpu, pointer + step * 4, size)) & 0xFFFF
            long_target = u32(long_mode_active(cpu) and code & L_BIT != 0)
            stack = check_return_stack(cpu, stack_selector, level, long_target)
            check_target(cpu, code, target)
            code = mark_accessed(cpu, selector, code)
            return_to(cpu, selector, code, stack_selector, stack, outer_pointer, size)
        restore_flags(cpu, image, size, old_level)
        cpu.next_rip = target
    cpu.nmi_blocked = 0
    cpu.stop_block = 1


@native(inline="never")
def restore_flags(cpu: Cpu, image: u64, size: u32, level: u32) -> None:
    """Set RFLAGS from an interrupt frame, as code at privilege `level` may.

    RF counts only where instruction breakpoints are armed; see debug.py.
    """
    mask = u64(ARITHMETIC_FLAGS | TF | DF | NT)
    if level <= u32(cpu.rflags >> IOPL_SHIFT) & 3:
        mask = mask | IF
    if level == 0:
        mask = mask | IOPL
    if size != 2:
        mask = mask | AC | ID
        if stops_at_instructions(cpu):
            mask = mask | RF
            cpu.debug_pending |= KEEP_RF
        if level == 0:
            mask = mask | VIF | VIP
    flags.set_rflags(cpu, image, mask)


# --- instructions ------------------------------------------------------------


@staged
def _far_operand(m: Operation) -> Any:
    """Return selector (u32) and offset (u64) of a far pointer in memory, which is read first."""
    offset = u64(m.load(m.T, m.address(0, m.T.size)))
    m.displace(u64(m.T.size))
    return u32(m.load(u16, m.address(0, 2))), offset


@instruction("EA : Av", no64=True, ends=True, name="jmp")
def jmp_far(m: Operation) -> None:
    """JMP, far direct."""
    far_transfer(m.cpu, u32(m.insn.imm2) & 0xFFFF, m.insn.imm, u32(m.T.size), 0)
    m.stop_block()


@instruction("9A : Av", no64=True, ends=True, name="call")
def call_far(m: Operation) -> None:
    """CALL, far direct."""
    far_transfer(m.cpu, u32(m.insn.imm2) & 0xFFFF, m.insn.imm, u32(m.T.size), 1)
    m.stop_block()


@instruction("FF /5:m : M", sized=True, ends=True, name="jmp")
def jmp_far_indirect(m: Operation) -> None:
    """JMP, far indirect: m16:16, m16:32, m16:64 (the last on Intel's only)."""
    selector, offset = _far_operand(m)
    far_transfer(m.cpu, selector, offset, u32(m.T.size), 0)
    m.stop_block()


@instruction("FF /3:m : M", sized=True, ends=True, name="call")
def call_far_indirect(m: Operation) -> None:
    """CALL, far indirect."""
    selector, offset = _far_operand(m)
    far_transfer(m.cpu, selector, offset, u32(m.T.size), 1)
    m.stop_block()


@instruction("CB", sized=True, ends=True, name="retf")
def ret_far(m: Operation) -> None:
    """RET, far."""
    far_return(m.cpu, u32(m.T.size), 0)
    m.stop_block()


@instruction("CA : Iw", sized=True, ends=True, name="retf")
def ret_far_release(m: Operation) -> None:
    """RET, far, releasing stack space."""
    far_return(m.cpu, u32(m.T.size), m.insn.imm & 0xFFFF)
    m.stop_block()


@instruction("CF", sized=True, ends=True)
def iret(m: Operation) -> None:
    """IRET, IRETD, IRETQ."""
    interrupt_return(m.cpu, u32(m.T.size))
    m.stop_block()


@instruction("CD : Ib", ends=True, name="int")
def int_n(m: Operation) -> None:
    """INT n."""
    deliver(m.cpu, u32(m.insn.imm) & 0xFF, 0, 0, EVENT_SOFTWARE, m.next_rip)
    m.stop_block()


@instruction("CC", ends=True)
def int3(m: Operation) -> None:
    """INT3: #BP, a trap."""
    deliver(m.cpu, BP, 0, 0, EVENT_SOFTWARE, m.next_rip)
    m.stop_block()


@instruction("F1", ends=True)
def int1(m: Operation) -> None:
    """INT1: #DB without any bit in DR6; the gate's DPL does not matter."""
    deliver(m.cpu, DB, 0, 0, EVENT_TRAP, m.next_rip)
    m.stop_block()


@instruction("CE", no64=True, ends=True)
def into(m: Operation) -> None:
    """INTO: #OF when OF is set."""
    if m.flag(OF):
        deliver(m.cpu, OF_TRAP, 0, 0, EVENT_SOFTWARE, m.next_rip)
    m.stop_block()
