"""Near jumps, calls, returns and the stack (Intel SDM vol. 2, under each name)."""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import ATTR_DB, RBP, RCX, RSP, SS, Cpu
from ringzero.isa.x86.insn.integer import CONDITIONS
from ringzero.isa.x86.privileged.alignment import check_alignment
from ringzero.isa.x86.privileged.descriptors import (
    is_canonical,
    near_target_allowed,
    segment_address,
)
from ringzero.isa.x86.privileged.faults import raise_ss0
from ringzero.isa.x86.privileged.mmu import probe_range
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import select, staged, u16, u32, u64


@staged
def stack_mask(m: Operation) -> Any:
    """Return the mask of the stack pointer outside 64-bit mode: 32 or 16 bits by SS.B."""
    if m.mode64 is not None:
        # Translated code runs only while the segments are flat and 32 bits wide.
        return u64(0xFFFFFFFF)
    big = (m.cpu.seg[SS].attributes & ATTR_DB) != 0
    return select(big, u64(0xFFFFFFFF), u64(0xFFFF))


@staged
def stack_address(m: Operation, pointer: Any, size: int, *, write: bool) -> Any:
    """Return the linear address of `size` bytes of the stack at the stack pointer's value.

    Raises #SS(0) where they are not canonical or beyond the limit of SS; translated
    code comes to its slow path with such an address.
    """
    if m.long_mode():
        if m.checked and not (is_canonical(pointer) and is_canonical(pointer + (size - 1))):
            raise_ss0(m.cpu)
        return pointer
    if m.checked:
        segment = Cpu.offset_of("seg", SS)
        return segment_address(m.cpu, segment, pointer & stack_mask(m), size, int(write))
    return (m.cpu.seg[SS].base + (pointer & stack_mask(m))) & 0xFFFFFFFF


@staged
def stack_load(m: Operation, kind: Any, pointer: Any) -> Any:
    """Load from the stack at the value `pointer` of the stack pointer."""
    return m.load(kind, stack_address(m, pointer, kind.size, write=False))


@staged
def stack_store(m: Operation, pointer: Any, value: Any) -> None:
    """Store to the stack at the value `pointer` of the stack pointer."""
    m.store(value.kind, stack_address(m, pointer, value.kind.size, write=True), value)


@staged
def stack_probe(m: Operation, kind: Any, pointer: Any) -> None:
    """Raise what a store to the stack would, and store nothing (handlers only)."""
    where = stack_address(m, pointer, kind.size, write=True)
    check_alignment(m.cpu, where, kind.size, 1)
    probe_range(m.cpu, where, u64(kind.size), u32(m.cpu.cpl == 3))


@staged
def set_stack_pointer(m: Operation, pointer: Any) -> None:
    """Set the stack pointer with the width that it has in this mode."""
    if m.long_mode():
        m.set(RSP, pointer)
    else:
        mask = stack_mask(m)
        m.set(RSP, (m.get(RSP, u64) & ~mask) | (pointer & mask))


@staged
def push_value(m: Operation, value: Any) -> None:
    """Push a value of its own width; the stack pointer moves after the store succeeded."""
    pointer = m.get(RSP, u64) - value.kind.size
    stack_store(m, pointer, value)
    set_stack_pointer(m, pointer)


@instruction("50+ : Zv", "FF /6 : Ev", d64=True, fast=True)
def push(m: Operation) -> None:
    """PUSH."""
    push_value(m, m.read(0))


@instruction("68 : Iz", "6A : Ibs", d64=True, fast=True, name="push")
def push_immediate(m: Operation) -> None:
    """PUSH of an immediate, sign-extended to the operand size."""
    push_value(m, m.read(0))


@instruction("58+ : Zv", d64=True, fast=True)
def pop(m: Operation) -> None:
    """POP; POP RSP leaves the popped value."""
    pointer = m.get(RSP, u64)
    value = stack_load(m, m.T, pointer)
    set_stack_pointer(m, pointer + m.T.size)
    m.write(0, value)


@instruction("8F /0 : Ev", d64=True, name="pop")
def pop_memory(m: Operation) -> None:
    """POP to memory: an address based on RSP uses its value after the pop."""
    pointer = m.get(RSP, u64)
    value = stack_load(m, m.T, pointer)
    if m.memory:
        based = m.insn.base == Cpu.offset_of("regs", RSP)
        m.displace(select(based, u64(m.T.size), u64(0)))
        m.write(0, value)
        set_stack_pointer(m, pointer + m.T.size)
    else:
        set_stack_pointer(m, pointer + m.T.size)
        m.write(0, value)


@instruction("60", no64=True, sized=True)
def pusha(m: Operation) -> None:
    """PUSHA, PUSHAD."""
    pointer = m.get(RSP, u64)
    size = m.T.size
    for n in range(8):
        stack_store(m, pointer - size * (n + 1), m.get(n, m.T))
    set_stack_pointer(m, pointer - size * 8)


@instruction("61", no64=True, sized=True)
def popa(m: Operation) -> None:
    """POPA, POPAD: the saved stack pointer is skipped."""
    pointer = m.get(RSP, u64)
    size = m.T.size
    values = [stack_load(m, m.T, pointer + size * n) for n in range(8)]
    for n in range(8):
        if 7 - n != RSP:
            m.set(7 - n, values[n])
    set_stack_pointer(m, pointer + size * 8)


@instruction("C9", d64=True, sized=True, fast=True)
def leave(m: Operation) -> None:
    """LEAVE."""
    pointer = m.get(RBP, u64)
    value = stack_load(m, m.T, pointer)
    set_stack_pointer(m, pointer + m.T.size)
    m.set(RBP, value)


@instruction("C8 : Iw Ib", d64=True, sized=True)
def enter(m: Operation) -> None:
    """ENTER."""
    size = m.T.size
    level = u64(m.insn.imm2) & 0x1F
    pointer = m.get(RSP, u64) - size
    frame = pointer
    stack_store(m, pointer, m.get(RBP, m.T))
    base = m.get(RBP, u64)
    n = u64(1)
    while n < level:
        base -= size
        pointer -= size
        stack_store(m, pointer, stack_load(m, m.T, base))
        n += 1
    if level != 0:
        pointer -= size
        stack_store(m, pointer, m.T(frame))
    pointer -= u64(m.insn.imm) & 0xFFFF
    # The new top must be writable (SDM vol. 2A, ENTER: "a write to the final stack pointer").
    stack_probe(m, m.T, pointer)
    m.set(RBP, m.T(frame))
    set_stack_pointer(m, pointer)


# --- jumps -------------------------------------------------------------------


@staged
def relative(m: Operation, n: int) -> Any:
    """Return the target of a relative branch."""
    return wrap(m, m.next_rip + u64(m.read(n)))


@staged
def wrap(m: Operation, target: Any) -> Any:
    """Cut an instruction pointer to the width that it has in this mode."""
    if m.long_mode():
        return target
    return target & (0xFFFF if m.size == 16 else 0xFFFFFFFF)


@instruction("E9 : Jz", "EB : Jb", d64=True, sized=True, ends=True, fast=True)
def jmp(m: Operation) -> None:
    """JMP, relative."""
    target = relative(m, 0)
    m.check_target(target)
    m.jump(target)


@instruction("FF /4 : Ev", d64=True, ends=True, fast=True, name="jmp")
def jmp_indirect(m: Operation) -> None:
    """JMP, near indirect."""
    target = u64(m.read(0))
    m.check_target(target)
    m.jump(target)


@staged
def _check_stack_first(m: Operation, target: Any) -> None:
    """For a call to nowhere: what is wrong with the stack is raised before that."""
    if m.checked and not near_target_allowed(m.cpu, target):
        stack_probe(m, m.T, m.get(RSP, u64) - m.T.size)


@instruction("E8 : Jz", d64=True, sized=True, ends=True, fast=True)
def call(m: Operation) -> None:
    """CALL, relative."""
    target = relative(m, 0)
    _check_stack_first(m, target)
    m.check_target(target)
    push_value(m, m.T(m.next_rip))
    m.jump(target)


@instruction("FF /2 : Ev", d64=True, ends=True, fast=True, name="call")
def call_indirect(m: Operation) -> None:
    """CALL, near indirect."""
    target = u64(m.read(0))
    _check_stack_first(m, target)
    m.check_call_target(target)
    push_value(m, m.T(m.next_rip))
    m.jump(target)


@instruction("C3", d64=True, sized=True, ends=True, fast=True)
def ret(m: Operation) -> None:
    """RET, near."""
    pointer = m.get(RSP, u64)
    target = u64(stack_load(m, m.T, pointer))
    m.check_target(target)
    set_stack_pointer(m, pointer + m.T.size)
    m.jump(target)


@instruction("C2 : Iw", d64=True, sized=True, ends=True, fast=True, name="ret")
def ret_release(m: Operation) -> None:
    """RET, near, releasing stack space."""
    pointer = m.get(RSP, u64)
    target = u64(stack_load(m, m.T, pointer))
    m.check_target(target)
    set_stack_pointer(m, pointer + m.T.size + (u64(m.read(0)) & 0xFFFF))
    m.jump(target)


def _jumps() -> None:
    for code, suffix in enumerate(CONDITIONS):

        def jcc(m: Operation, code: int = code) -> None:
            """Jcc."""
            m.branch(m.condition(code), relative(m, 0))

        instruction(
            f"{0x70 + code:02X} : Jb", f"0F {0x80 + code:02X} : Jz",
            name="j" + suffix, d64=True, sized=True, ends=True, fast=True,
        )(jcc)  # fmt: skip


_jumps()


@staged
def _count_register(m: Operation) -> Any:
    return m.get(RCX, u64) & m.insn.address_mask


@staged
def _decrement_count(m: Operation) -> Any:
    mask = m.insn.address_mask
    count = (m.get(RCX, u64) - 1) & mask
    if mask == 0xFFFF:
        m.set(RCX, u16(count))
    elif mask == 0xFFFFFFFF:
        m.set(RCX, u32(count))
    else:
        m.set(RCX, count)
    return count


def _loops() -> None:
    for opcode, suffix, wanted in (("E0", "ne", 5), ("E1", "e", 4), ("E2", "", -1)):

        def loop(m: Operation, wanted: int = wanted) -> None:
            """LOOP, LOOPE, LOOPNE."""
            target = relative(m, 0)
            goes = _decrement_count(m) != 0
            m.branch(goes if wanted < 0 else goes & m.condition(wanted), target)

        instruction(f"{opcode} : Jb", name="loop" + suffix, d64=True, sized=True, ends=True)(loop)


_loops()


@instruction("E3 : Jb", d64=True, sized=True, ends=True, fast=True)
def jrcxz(m: Operation) -> None:
    """JCXZ, JECXZ, JRCXZ."""
    m.branch(_count_register(m) == 0, relative(m, 0))


@instruction("62 /r:m : Gv M", no64=True)
def bound(m: Operation) -> None:
    """BOUND: #BR when the index lies outside the two bounds in memory."""
    where = m.address(1, 2 * m.T.size)
    index = m.S(m.read(0))
    low = m.S(m.load(m.T, where))
    high = m.S(m.load(m.T, where + m.T.size))
    if index < low or index > high:
        m.fault(5)
