"""The stack as interrupts, far transfers and segment pushes use it.

Pushes and pops take the stack pointer and give back the new one; the caller
commits it when nothing can fault any more. Intel SDM vol. 1, chapter 6.2.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import ATTR_DB, MODE_64, RSP, SS, SS_FAULT, Cpu
from ringzero.isa.x86.privileged.descriptors import (
    descriptor_attributes,
    descriptor_base,
    descriptor_limit,
    is_canonical,
    within_limit,
)
from ringzero.isa.x86.privileged.faults import raise_fault_code
from ringzero.isa.x86.privileged.mmu import read_memory, write_memory, write_system
from ringzero.native import native, select, staged, u16, u32, u64

WIDE = (1 << 64) - 1


@staged
def width_mask(attributes: Any) -> Any:
    """Return the mask of the stack pointer outside 64-bit mode: 32 or 16 bits by SS.B."""
    return select((attributes & ATTR_DB) != 0, u64(0xFFFFFFFF), u64(0xFFFF))


@native(inline="never")
def store_stack(cpu: Cpu, address: u64, size: u32, value: u64, level: u32) -> None:
    """Store 2, 4 or 8 bytes with the rights of privilege `level`."""
    if level == 3:
        if size == 8:
            write_memory(cpu, address, value)
        elif size == 4:
            write_memory(cpu, address, u32(value))
        else:
            write_memory(cpu, address, u16(value))
    elif size == 8:
        write_system(cpu, address, value)
    elif size == 4:
        write_system(cpu, address, u32(value))
    else:
        write_system(cpu, address, u16(value))


@native(inline="never")
def push_onto(
    cpu: Cpu, descriptor: u64, code: u64, pointer: u64, size: u32, value: u64, level: u32
) -> u64:
    """Push on a segmented stack that is not loaded yet; return the new stack pointer.

    `descriptor` is that of SS; #SS(`code`) when it does not fit.
    """
    attributes = descriptor_attributes(descriptor)
    mask = width_mask(attributes)
    offset = (pointer - u64(size)) & mask
    if not within_limit(descriptor_limit(descriptor), attributes, offset, u64(size)):
        raise_fault_code(cpu, SS_FAULT, code)
    address = (descriptor_base(descriptor) + offset) & 0xFFFFFFFF
    store_stack(cpu, address, size, value, level)
    return (pointer & ~mask) | offset


@native(inline="never")
def push_flat(cpu: Cpu, pointer: u64, size: u32, value: u64, level: u32) -> u64:
    """Push on a 64-bit stack; return the new stack pointer. #SS(0) when it is not canonical."""
    pointer -= u64(size)
    if not (is_canonical(pointer) and is_canonical(pointer + u64(size) - 1)):
        raise_fault_code(cpu, SS_FAULT, 0)
    store_stack(cpu, pointer, size, value, level)
    return pointer


@native(inline="never")
def push_current(cpu: Cpu, pointer: u64, size: u32, value: u64) -> u64:
    """Push on the current stack in the current mode; return the new stack pointer."""
    if cpu.mode == MODE_64:
        return push_flat(cpu, pointer, size, value, cpu.cpl)
    attributes = cpu.seg[SS].attributes
    mask = width_mask(attributes)
    offset = (pointer - u64(size)) & mask
    if not within_limit(cpu.seg[SS].limit, attributes, offset, u64(size)):
        raise_fault_code(cpu, SS_FAULT, 0)
    store_stack(cpu, (cpu.seg[SS].base + offset) & 0xFFFFFFFF, size, value, cpu.cpl)
    return (pointer & ~mask) | offset


@native(inline="never")
def peek(cpu: Cpu, pointer: u64, size: u32) -> u64:
    """Return 2, 4 or 8 bytes at the value `pointer` of the current stack pointer."""
    address = u64(pointer)
    if cpu.mode == MODE_64:
        if not (is_canonical(address) and is_canonical(address + u64(size) - 1)):
            raise_fault_code(cpu, SS_FAULT, 0)
    else:
        attributes = cpu.seg[SS].attributes
        offset = pointer & width_mask(attributes)
        if not within_limit(cpu.seg[SS].limit, attributes, offset, u64(size)):
            raise_fault_code(cpu, SS_FAULT, 0)
        address = (cpu.seg[SS].base + offset) & 0xFFFFFFFF
    if size == 8:
        return u64(read_memory(cpu, u64, address))
    if size == 4:
        return u64(read_memory(cpu, u32, address))
    return u64(read_memory(cpu, u16, address))


@native(inline="never")
def set_stack_pointer(cpu: Cpu, pointer: u64) -> None:
    """Set RSP, ESP or SP, as wide as the current mode and SS make it."""
    if cpu.mode == MODE_64:
        cpu.regs[RSP] = pointer
    elif cpu.seg[SS].attributes & ATTR_DB:
        cpu.regs[RSP] = pointer & 0xFFFFFFFF
    else:
        cpu.regs[RSP] = (cpu.regs[RSP] & (WIDE ^ 0xFFFF)) | (pointer & 0xFFFF)
