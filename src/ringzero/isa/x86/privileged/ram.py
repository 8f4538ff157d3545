"""RAM by the host's addresses: where it lies, and stores that see to translated code."""

from __future__ import annotations

from ringzero.isa.caches import PAGE_MASK, CodePage
from ringzero.isa.exclusive import MACHINE, NOTHING, WAITING
from ringzero.isa.x86.cpu import Cpu
from ringzero.isa.x86.privileged.exclusive import (
    lock_machine,
    resume_others,
    shared_of,
    stop_others,
    unlock_machine,
)
from ringzero.isa.x86.privileged.lookaside import forget_code
from ringzero.native import load, native, pointer, store, u8, u16, u32, u64


@native
def host_address(cpu: Cpu, physical: u64) -> u64:
    """Return the host address of a guest-physical address of RAM, or 0."""
    if physical < cpu.ram_low_end:
        return cpu.ram + physical
    if physical >= cpu.ram_high_start and physical < cpu.ram_high_end:
        return cpu.ram + physical + cpu.ram_high_addend
    return u64(0)


@native(inline="never")
def store_host(cpu: Cpu, host: u64, value: u64, size: u64) -> None:
    """Store to RAM at a host address, dropping translated code that it changes.

    A page gets its first code only while this vCPU stands still, so it has none when it
    is stored to; one that has code gets no more of it meanwhile, by the machine's lock.
    """
    held = u32(cpu.held)
    if load(u64, cpu.code_pages + (((host - cpu.ram) >> 12) << 3)) != 0:
        written_code(cpu, host, size)
    if size == 1:
        store(u8, host, u8(value))
    elif size == 2:
        store(u16, host, u16(value))
    elif size == 4:
        store(u32, host, u32(value))
    else:
        store(u64, host, value)
    if cpu.held != held:
        unlock_machine(cpu)


@native(inline="never")
def written_code(cpu: Cpu, host: u64, size: u64) -> None:
    """Note a write to a page with code: when it hits lines of it, that page's code goes.

    Takes the machine's lock unless the vCPU has it.
    """
    if cpu.held == NOTHING:
        lock_machine(cpu, u32(WAITING))
    offset = host - cpu.ram
    page = load(u64, cpu.code_pages + ((offset >> 12) << 3))
    if page != 0:
        lines = pointer(CodePage, page).lines
        first = (offset & PAGE_MASK) >> 6
        last = ((offset & PAGE_MASK) + size - 1) >> 6
        if last > 63:
            last = u64(63)
        if (lines >> first) & ((u64(2) << (last - first)) - 1) != 0:
            alone = cpu.held == MACHINE
            if not alone:
                stop_others(cpu)
            store(u64, cpu.code_pages + ((offset >> 12) << 3), u64(0))
            store(u8, cpu.code_sought + (offset >> 12), u8(0))
            cpu.count_dropped += 1
            cpu.stop_block = 1
            forget_code(shared_of(cpu))
            if not alone:
                resume_others(cpu)
