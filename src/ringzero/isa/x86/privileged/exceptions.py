"""Delivery of exceptions and interrupts (Intel SDM vol. 3A, chapter 6).

`deliver` takes one event through the IDT of the mode in force. What fails on
the way raises a fault again, and the run loop gives that to `deliver_fault`,
which decides between the new fault, a double fault and shutdown. Task gates
and virtual-8086 mode are not there: a task gate raises #GP as in IA-32e mode.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.execution import EXIT_SHUTDOWN, LEAVE_EXIT
from ringzero.isa.x86 import flags
from ringzero.isa.x86.cpu import (
    AC,
    ATTR_DB,
    ATTR_L,
    ATTR_P,
    CS,
    DE,
    DOUBLE_FAULT,
    GP,
    IF,
    NMI,
    NP,
    NT,
    PF_FAULT,
    RF,
    RSP,
    SS,
    TF,
    TR,
    TS,
    VM,
    Cpu,
)
from ringzero.isa.x86.privileged.alignment import select_tlb
from ringzero.isa.x86.privileged.descriptors import (
    INTERRUPT_GATE16,
    INTERRUPT_GATE32,
    TRAP_GATE16,
    TRAP_GATE32,
    TYPE_CONFORMING,
    check_stack_descriptor,
    check_target,
    descriptor_attributes,
    dpl_of,
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
from ringzero.isa.x86.privileged.faults import leave, raise_fault_code, raise_gp0
from ringzero.isa.x86.privileged.mmu import read_system
from ringzero.isa.x86.privileged.stack import push_current, push_flat, push_onto, set_stack_pointer
from ringzero.native import native, select, staged, u32, u64

# What is delivered. A fault's saved RFLAGS has RF set, a trap's has not (SDM vol. 3B,
# 17.3.1.1); only INT n, INT3 and INTO check the gate's DPL and leave EXT clear.
EVENT_FAULT, EVENT_TRAP, EVENT_SOFTWARE, EVENT_EXTERNAL = range(4)

# `Cpu.delivering_class` (SDM vol. 3A, table 6-4); a software interrupt is benign.
CLASS_BENIGN, CLASS_CONTRIBUTORY, CLASS_PAGE_FAULT, CLASS_DOUBLE_FAULT, CLASS_SOFTWARE = range(5)

# Bit 1 of an error code: the selector index is that of an IDT entry.
CODE_IDT = 2

# RFLAGS bits that every delivery clears.
DELIVERY_CLEARS = TF | NT | RF | VM


@native
def exception_class(vector: u32) -> u32:
    """Return the class of an exception for the double-fault rules (SDM vol. 3A, table 6-4)."""
    if vector == PF_FAULT:
        return u32(CLASS_PAGE_FAULT)
    if vector == DOUBLE_FAULT:
        return u32(CLASS_DOUBLE_FAULT)
    if vector == DE or (vector >= TS and vector <= GP):
        return u32(CLASS_CONTRIBUTORY)
    return u32(CLASS_BENIGN)


@native(inline="never")
def deliver_fault(cpu: Cpu) -> None:
    """Deliver the exception in `fault_vector` and `fault_code`, found at `rip`.

    When it came up during the delivery of another event, the rules of SDM
    vol. 3A, tables 6-4 and 6-5 turn the two into a double fault, or end the
    machine's run with EXIT_SHUTDOWN.
    """
    vector = cpu.fault_vector
    has_code = cpu.fault_has_code
    code = cpu.fault_code
    if cpu.delivering != 0:
        first = cpu.delivering_class
        second = exception_class(vector)
        if second != CLASS_BENIGN:
            if first == CLASS_DOUBLE_FAULT:
                shut_down(cpu)
            if first == CLASS_PAGE_FAULT or (
                first == CLASS_CONTRIBUTORY and second == CLASS_CONTRIBUTORY
            ):
                vector = u32(DOUBLE_FAULT)
                has_code = u32(1)
                code = u64(0)
        if vector >= TS and vector <= GP and first != CLASS_SOFTWARE:
            code = code | 1
    deliver(cpu, vector, has_code, code, u32(EVENT_FAULT), cpu.rip)


@native(noreturn=True)
def shut_down(cpu: Cpu) -> None:
    """Stop the vCPU after a triple fault."""
    cpu.delivering = 0
    cpu.exit_kind = EXIT_SHUTDOWN
    leave(cpu, LEAVE_EXIT)


@native(inline="never")
def deliver_interrupt(cpu: Cpu, vector: u32) -> None:
    """Deliver an external interrupt between two instructions, the next at `rip`.

    Vector 2 is an NMI: further ones are blocked until the next IRET (SDM vol. 3A, 6.7.1).
    """
    deliver(cpu, vector, 0, 0, EVENT_EXTERNAL, cpu.rip)
    if vector == NMI:
        cpu.nmi_blocked = 1


@native(inline="never")
def deliver(cpu: Cpu, vector: u32, has_code: u32, code: u64, event: u32, saved_rip: u64) -> None:
    """Take an event through the IDT; on return `rip` and `next_rip` are the handler's.

    `event` is one of the EVENT_ kinds, `saved_rip` what the handler returns to.
    """
    cpu.delivering = vector + 1
    if event == EVENT_SOFTWARE:
        cpu.delivering_class = CLASS_SOFTWARE
    elif event == EVENT_EXTERNAL:
        cpu.delivering_class = CLASS_BENIGN
    else:
        cpu.delivering_class = exception_class(vector)
    if long_mode_active(cpu):
        deliver_long(cpu, vector, has_code, code, event, saved_rip)
    elif protected_mode(cpu):
        deliver_protected(cpu, vector, has_code, code, event, saved_rip)
    else:
        deliver_real(cpu, vector, saved_rip)
    cpu.delivering = 0
    cpu.halted = 0
    cpu.shadow = 0
    cpu.stepping = 0
    # What a load of SS has put off survives an instruction that asks for its event, INT1 too:
    # it is raised at the handler's first instruction. A fault takes its place.
    if event != EVENT_SOFTWARE and event != EVENT_TRAP:
        cpu.debug_pending = 0
    cpu.stop_block = 1


@staged
def saved_flags(cpu: Any, event: Any) -> Any:
    """Return RFLAGS as the event saves it."""
    image = flags.get_rflags(cpu)
    return select(event == EVENT_FAULT, image | RF, image)


@staged
def idt_fault(cpu: Any, fault: int, vector: Any) -> None:
    """Raise #GP or #NP for an IDT entry."""
    raise_fault_code(cpu, fault, u64(vector) * 8 | CODE_IDT)


@native(inline="never")
def check_gate(cpu: Cpu, vector: u32, gate: u64, event: u32) -> None:
    """Check a gate's DPL (software interrupts only) and that it is present."""
    if event == EVENT_SOFTWARE and cpu.cpl > u32(gate >> 45) & 3:
        idt_fault(cpu, GP, vector)
    if gate & (1 << 47) == 0:
        idt_fault(cpu, NP, vector)


@native(inline="never")
def read_handler_segment(cpu: Cpu, selector: u32) -> u64:
    """Return the checked descriptor of a handler's code segment."""
    if is_null(selector):
        raise_gp0(cpu)
    descriptor = read_descriptor(cpu, selector, GP)
    attributes = descriptor_attributes(descriptor)
    if not is_code(attributes) or dpl_of(attributes) > cpu.cpl:
        selector_fault(cpu, GP, selector)
    if attributes & ATTR_P == 0:
        selector_fault(cpu, NP, selector)
    return descriptor


@staged
def handler_level(cpu: Any, descriptor: Any) -> Any:
    """Return the privilege level at which a handler in this code segment runs."""
    attributes = descriptor_attributes(descriptor)
    return select((attributes & TYPE_CONFORMING) != 0, cpu.cpl, dpl_of(attributes))


@staged
def is_interrupt_gate(gate: Any) -> Any:
    """Return whether a gate of a checked type clears IF: its type is even."""
    return (gate & (1 << 40)) == 0


@native(inline="never")
def deliver_long(
    cpu: Cpu, vector: u32, has_code: u32, code: u64, event: u32, saved_rip: u64
) -> None:
    """Deliver in IA-32e mode: 16-byte gates, IST, 64-bit frames (SDM vol. 3A, 6.14)."""
    offset = vector * 16
    if offset + 15 > cpu.idt_limit:
        idt_fault(cpu, GP, vector)
    gate = read_system(cpu, u64, cpu.idt_base + u64(offset))
    high = read_system(cpu, u64, cpu.idt_base + u64(offset) + 8)
    kind = u32(gate >> 40) & 0x1F
    if kind != INTERRUPT_GATE32 and kind != TRAP_GATE32:
        idt_fault(cpu, GP, vector)
    check_gate(cpu, vector, gate, event)
    selector = u32(gate >> 16) & 0xFFFF
    descriptor = read_handler_segment(cpu, selector)
    if descriptor_attributes(descriptor) & (ATTR_L | ATTR_DB) != ATTR_L:
        selector_fault(cpu, GP, selector)
    level = handler_level(cpu, descriptor)
    target = (gate & 0xFFFF) | ((gate >> 32) & 0xFFFF0000) | (high << 32)
    check_target(cpu, descriptor, target)
    pointer = u64(cpu.regs[RSP])
    ist = u32(gate >> 32) & 7
    if ist != 0:
        pointer = read_ist(cpu, ist)
    elif level < cpu.cpl:
        pointer = inner_stack_pointer(cpu, level)
    pointer = pointer & ~u64(0xF)
    pointer = push_flat(cpu, pointer, 8, u64(cpu.seg[SS].selector), level)
    pointer = push_flat(cpu, pointer, 8, cpu.regs[RSP], level)
    pointer = push_flat(cpu, pointer, 8, saved_flags(cpu, event), level)
    pointer = push_flat(cpu, pointer, 8, u64(cpu.seg[CS].selector), level)
    pointer = push_flat(cpu, pointer, 8, saved_rip, level)
    if has_code != 0:
        pointer = push_flat(cpu, pointer, 8, code, level)
    descriptor = mark_accessed(cpu, selector, descriptor)
    if level != cpu.cpl:
        set_null_stack(cpu, level)
    set_code_segment(cpu, selector, descriptor, level)
    cpu.regs[RSP] = pointer
    enter_handler(cpu, gate, target)


@native(inline="never")
def read_ist(cpu: Cpu, number: u32) -> u64:
    """Return entry 1-7 of the interrupt stack table (SDM vol. 3A, 7.7); #TS(TR) beyond the TSS."""
    offset = u32(0x1C) + number * 8
    if offset + 7 > cpu.seg[TR].limit:
        selector_fault(cpu, TS, cpu.seg[TR].selector)
    return u64(read_system(cpu, u64, cpu.seg[TR].base + u64(offset)))


@native(inline="never")
def enter_handler(cpu: Cpu, gate: u64, target: u64) -> None:
    """Set RFLAGS and RIP as a handler finds them."""
    cpu.rflags &= ~u64(DELIVERY_CLEARS)
    if is_interrupt_gate(gate):
        cpu.rflags &= ~u64(IF)
    cpu.rip = target
    cpu.next_rip = target


@native(inline="never")
def deliver_protected(
    cpu: Cpu, vector: u32, has_code: u32, code: u64, event: u32, saved_rip: u64
) -> None:
    """Deliver in 32-bit protected mode through a 32 or 16-bit gate (SDM vol. 3A, 6.12)."""
    offset = vector * 8
    if offset + 7 > cpu.idt_limit:
        idt_fault(cpu, GP, vector)
    gate = read_system(cpu, u64, cpu.idt_base + u64(offset))
    kind = u32(gate >> 40) & 0x1F
    size = u32(4)
    if kind == INTERRUPT_GATE16 or kind == TRAP_GATE16:
        size = u32(2)
    elif kind != INTERRUPT_GATE32 and kind != TRAP_GATE32:
        idt_fault(cpu, GP, vector)
    check_gate(cpu, vector, gate, event)
    selector = u32(gate >> 16) & 0xFFFF
    descriptor = read_handler_segment(cpu, selector)
    level = handler_level(cpu, descriptor)
    target = gate & 0xFFFF
    if size == 4:
        target = target | ((gate >> 32) & 0xFFFF0000)
    image = saved_flags(cpu, event)
    if level == cpu.cpl:
        check_target(cpu, descriptor, target)
        pointer = cpu.regs[RSP]
        pointer = push_current(cpu, pointer, size, image)
        pointer = push_current(cpu, pointer, size, u64(cpu.seg[CS].selector))
        pointer = push_current(cpu, pointer, size, saved_rip)
        if has_code != 0:
            pointer = push_current(cpu, pointer, size, code)
        set_stack_pointer(cpu, pointer)
    else:
        stack_selector = inner_stack_selector(cpu, level)
        if is_null(stack_selector):
            raise_fault_code(cpu, TS, 0)
        stack = check_stack_descriptor(cpu, stack_selector, level, TS)
        check_target(cpu, descriptor, target)
        room = u64(stack_selector & 0xFFFC)
        pointer = inner_stack_pointer(cpu, level)
        pointer = push_onto(cpu, stack, room, pointer, size, u64(cpu.seg[SS].selector), level)
        pointer = push_onto(cpu, stack, room, pointer, size, cpu.regs[RSP], level)
        pointer = push_onto(cpu, stack, room, pointer, size, image, level)
        pointer = push_onto(cpu, stack, room, pointer, size, u64(cpu.seg[CS].selector), level)
        pointer = push_onto(cpu, stack, room, pointer, size, saved_rip, level)
        if has_code != 0:
            pointer = push_onto(cpu, stack, room, pointer, size, code, level)
        stack = mark_accessed(cpu, stack_selector, stack)
        set_segment(cpu, SS, stack_selector, stack)
        set_stack_pointer(cpu, pointer)
    descriptor = mark_accessed(cpu, selector, descriptor)
    set_code_segment(cpu, selector, descriptor, level)
    enter_handler(cpu, gate, target)


@native(inline="never")
def deliver_real(cpu: Cpu, vector: u32, saved_rip: u64) -> None:
    """Deliver in real-address mode through the interrupt vector table (SDM vol. 3B, 20.1.4)."""
    offset = vector * 4
    if offset + 3 > cpu.idt_limit:
        idt_fault(cpu, GP, vector)
    entry = read_system(cpu, u32, cpu.idt_base + u64(offset))
    pointer = cpu.regs[RSP]
    pointer = push_current(cpu, pointer, 2, flags.get_rflags(cpu))
    pointer = push_current(cpu, pointer, 2, u64(cpu.seg[CS].selector))
    pointer = push_current(cpu, pointer, 2, saved_rip)
    set_stack_pointer(cpu, pointer)
    set_real_segment(cpu, CS, entry >> 16)
    cpu.rflags &= ~u64(IF | TF | AC | RF)
    select_tlb(cpu)
    cpu.rip = u64(entry & 0xFFFF)
    cpu.next_rip = cpu.rip
