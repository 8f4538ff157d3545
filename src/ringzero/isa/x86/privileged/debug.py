"""Debug exceptions and the debug registers (Intel SDM vol. 3B, chapter 17).

The run loop calls `begin_instruction` before and `check_debug` after each
instruction while `debug_active` says so: TF, RF, an enabled breakpoint (the
host's debugger's, too) or a pending trap. At all other times debugging costs nothing.
"""

from __future__ import annotations

from ringzero.isa.x86.cpu import CR4_DE, DB, RF, SHADOW_SS, TF, Cpu
from ringzero.isa.x86.privileged.breakpoints import (
    KEEP_RF,
    code_address,
    match_instruction,
    stops_at_instructions,
)
from ringzero.isa.x86.privileged.exceptions import EVENT_TRAP, deliver
from ringzero.isa.x86.privileged.faults import raise_fault, raise_gp0, raise_ud
from ringzero.isa.x86.privileged.lookaside import flush_tlb
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import boolean, native, u32, u64

DR6_HITS, DR6_BD, DR6_BS = 0xF, 1 << 13, 1 << 14
DR7_GD = 1 << 13

# Bits that read as 1 whatever is written, and those that read as 0 (SDM vol. 3B, figure 17-1).
DR6_ONES, DR6_ZEROS = 0xFFFF0FF0, 1 << 12
DR7_ONES, DR7_ZEROS = 1 << 10, 0xD800


@native
def debug_active(cpu: Cpu) -> boolean:
    """Return whether instructions must be run one by one with the hooks here around them."""
    active = (cpu.rflags & (TF | RF)) | cpu.debug_pending
    return stops_at_instructions(cpu) or active != 0


@native(inline="never")
def begin_instruction(cpu: Cpu) -> u32:
    """Before the instruction at `rip`: raise its breakpoints; return 1 when one was delivered."""
    cpu.stepping = u32(cpu.rflags & TF)
    if cpu.rflags & RF != 0:
        return u32(0)
    hits = match_instruction(cpu, code_address(cpu))
    if hits == 0:
        return u32(0)
    deliver_debug(cpu, hits)
    return u32(1)


@native(inline="never")
def deliver_debug(cpu: Cpu, bits: u64) -> None:
    """Deliver #DB at `rip` with these bits added to DR6; GD is cleared on the way (17.2.4)."""
    cpu.dr[6] |= bits
    cpu.dr[7] &= ~u64(DR7_GD)
    cpu.count_exceptions += 1
    deliver(cpu, DB, 0, 0, EVENT_TRAP, cpu.rip)


@native(inline="never")
def check_debug(cpu: Cpu) -> None:
    """After an instruction, `rip` being that of the next: deliver single-step and data traps.

    A trap found while a load of SS blocks it waits for the next instruction
    (SDM vol. 3A, 6.8.3).
    """
    pending = u64(cpu.debug_pending)
    if pending & KEEP_RF == 0:
        cpu.rflags &= ~u64(RF)
    pending = pending & DR6_HITS
    if cpu.shadow == SHADOW_SS:
        cpu.debug_pending = pending
        return
    cpu.debug_pending = 0
    if cpu.stepping != 0:
        pending = pending | DR6_BS
    cpu.stepping = 0
    if pending != 0:
        deliver_debug(cpu, pending)


# --- MOV DRn -----------------------------------------------------------------


@native(inline="never")
def debug_register(cpu: Cpu, number: u32) -> u32:
    """Check an access to DRn and return the register that it means (DR4, DR5 are DR6, DR7)."""
    if number > 7:
        raise_ud(cpu)
    if number == 4 or number == 5:
        if cpu.cr4 & CR4_DE != 0:
            raise_ud(cpu)
        number = number + 2
    if cpu.dr[7] & DR7_GD != 0:
        cpu.dr[6] |= DR6_BD
        cpu.dr[7] &= ~u64(DR7_GD)
        raise_fault(cpu, DB)
    return number


@native(inline="never")
def write_debug_register(cpu: Cpu, number: u32, value: u64) -> None:
    """Write DRn: #GP(0) for bits 63:32 of DR6 and DR7; new breakpoints empty the TLB."""
    number = debug_register(cpu, number)
    if number == 6:
        if value >> 32 != 0:
            raise_gp0(cpu)
        cpu.dr[6] = (value & ~u64(DR6_ZEROS)) | DR6_ONES
    elif number == 7:
        if value >> 32 != 0:
            raise_gp0(cpu)
        cpu.dr[7] = (value & ~u64(DR7_ZEROS)) | DR7_ONES
        flush_tlb(cpu)
    else:
        cpu.dr[number] = value
        flush_tlb(cpu)


@instruction("0F 21 /r:r : Rq Dq", privileged=True, name="mov")
def mov_from_debug(m: Operation) -> None:
    """MOV from a debug register."""
    number = debug_register(m.cpu, u32(m.register_number(1)))
    m.write(0, m.cpu.dr[number])


@instruction("0F 23 /r:r : Dq Rq", privileged=True, ends=True, name="mov")
def mov_to_debug(m: Operation) -> None:
    """MOV to a debug register; outside 64-bit mode 32 bits of it."""
    value = m.read(1)
    if not m.long_mode():
        value = value & 0xFFFFFFFF
    write_debug_register(m.cpu, u32(m.register_number(0)), value)
    m.stop_block()
