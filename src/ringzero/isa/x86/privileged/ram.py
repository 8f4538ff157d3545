"""Where RAM lies in the host's address space."""

from __future__ import annotations

from ringzero.isa.x86.cpu import Cpu
from ringzero.native import native, u64


@native
def host_address(cpu: Cpu, physical: u64) -> u64:
    """Return the host address of a guest-physical address of RAM, or 0."""
    if physical < cpu.ram_low_end:
        return cpu.ram + physical
    if physical >= cpu.ram_high_start and physical < cpu.ram_high_end:
        return cpu.ram + physical + cpu.ram_high_addend
    return u64(0)
