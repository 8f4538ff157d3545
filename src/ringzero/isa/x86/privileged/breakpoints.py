"""Hardware breakpoints in DR0-DR3 (Intel SDM vol. 3B, 17.2): does an access match?

Apart from debug.py, because memory accesses ask here and deliver nothing.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import CS, MODE_64, RF, Cpu
from ringzero.native import native, select, staged, u64

# The R/W field of DR7 (SDM vol. 3B, 17.2.4).
ON_EXECUTE, ON_WRITE, ON_PORT, ON_ACCESS = range(4)

# L0-L3 and G0-G3 of DR7: whether any breakpoint is enabled.
DR7_ENABLED = 0xFF

# In `debug_pending`: this instruction (IRET) loaded RF, which is to hold for the next one.
KEEP_RF = 1 << 63


@native
def code_address(cpu: Cpu) -> u64:
    """Return the linear address of the instruction at RIP."""
    linear = cpu.seg[CS].base + cpu.rip
    return select(cpu.mode == MODE_64, cpu.rip, linear & 0xFFFFFFFF)


@staged
def stops_at_instructions(cpu: Any) -> Any:
    """Whether breakpoints of instructions may be armed, the guest's or the host's: RF counts."""
    return ((cpu.dr[7] & DR7_ENABLED) | u64(cpu.single_step)) != 0


@staged
def stay_on_instruction(cpu: Any) -> None:
    """Have the instruction at RIP, which is half done, go on without a stop at it (17.3.1.1)."""
    if stops_at_instructions(cpu):
        cpu.rflags |= RF
        cpu.debug_pending |= KEEP_RF
    if cpu.single_step != 0:
        cpu.reported = code_address(cpu)


@staged
def _armed(cpu: Any, n: int, kind: int) -> Any:
    """Return whether breakpoint `n` is enabled and its R/W field is `kind`."""
    enabled = (cpu.dr[7] >> (2 * n)) & 3
    return (enabled != 0) & (((cpu.dr[7] >> (16 + 4 * n)) & 3) == kind)


@staged
def _overlaps(cpu: Any, n: int, address: Any, size: Any) -> Any:
    """Return whether `size` bytes at `address` touch breakpoint `n`'s range."""
    field = (cpu.dr[7] >> (18 + 4 * n)) & 3
    length = u64(1)
    if field == 1:
        length = u64(2)
    elif field == 2:
        length = u64(8)
    elif field == 3:
        length = u64(4)
    start = cpu.dr[n] & ~(length - 1)
    return (address < start + length) & (start < address + size)


@native(inline="never")
def match_data(cpu: Cpu, address: u64, size: u64, write: u64) -> None:
    """Note in `debug_pending` which data breakpoints a load or store at `address` hits."""
    for n in range(4):
        hit = _armed(cpu, n, ON_ACCESS) | (_armed(cpu, n, ON_WRITE) & (write != 0))
        if hit and _overlaps(cpu, n, address, size):
            cpu.debug_pending |= 1 << n


@native(inline="never")
def match_port(cpu: Cpu, port: u64, size: u64) -> None:
    """Note in `debug_pending` which I/O breakpoints (CR4.DE) an access to `port` hits."""
    for n in range(4):
        if _armed(cpu, n, ON_PORT) and _overlaps(cpu, n, port, size):
            cpu.debug_pending |= 1 << n


@native(inline="never")
def match_instruction(cpu: Cpu, address: u64) -> u64:
    """Return the DR6 bits of the instruction breakpoints at a linear address."""
    found = u64(0)
    for n in range(4):
        if _armed(cpu, n, ON_EXECUTE) and cpu.dr[n] == address:
            found = found | (1 << n)
    return found


@native(inline="never")
def watches_page(cpu: Cpu, address: u64) -> u64:
    """Return 1 when a data breakpoint lies in the 4 KiB page of `address`: do not cache it."""
    page = address & ~u64(0xFFF)
    for n in range(4):
        if (_armed(cpu, n, ON_ACCESS) | _armed(cpu, n, ON_WRITE)) and _overlaps(
            cpu, n, page, u64(0x1000)
        ):
            return u64(1)
    return u64(0)
