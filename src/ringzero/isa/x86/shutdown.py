"""What a user is told when a guest's CPU cannot go on: its registers, and its last code bytes."""

from __future__ import annotations

from ringzero.core.memory import GuestMemory
from ringzero.isa.x86.state import GPR_NAMES, CpuState

# Bytes of code shown before the instruction at RIP and from it on, as Linux shows an oops.
_BEFORE, _FROM = 32, 16
_CR0_PG, _CR4_PSE, _CR4_PAE, _EFER_LMA = 1 << 31, 1 << 4, 1 << 5, 1 << 10
_PRESENT, _LARGE = 1, 1 << 7
_CS_LONG = 1 << 13
_ADDRESS = 0x000F_FFFF_FFFF_F000


def describe(state: CpuState, memory: GuestMemory) -> str:
    """Return RIP, the registers and the code around RIP of a CPU that shut down."""
    values = [f"{name}={value:#018x}" for name, value in zip(GPR_NAMES, state.gpr, strict=True)]
    lines = [" ".join(values[n : n + 4]) for n in range(0, 16, 4)]
    lines.append(f"rip={state.rip:#018x} rflags={state.rflags:#x} cs={state.cs.selector:#x}")
    lines.append(
        f"cr0={state.cr0:#x} cr2={state.cr2:#x} cr3={state.cr3:#x} cr4={state.cr4:#x} "
        f"efer={state.efer:#x} idt={state.idtr.base:#x} (limit {state.idtr.limit:#x})"
    )
    lines.append(f"code: {code_around(state, memory)}")
    return "\n".join(lines)


def code_around(state: CpuState, memory: GuestMemory) -> str:
    """Return the bytes around RIP in hexadecimal, the one at RIP in angle brackets."""
    start = state.rip if state.cs.attributes & _CS_LONG else state.cs.base + state.rip
    cells = []
    for address in range(start - _BEFORE, start + _FROM):
        physical = physical_address(state, memory, address)
        if physical is not None and memory.is_ram(physical):
            byte = f"{memory.read_int(physical, 1):02x}"
            cells.append(f"<{byte}>" if address == start else byte)
        elif address >= start:
            break
    return " ".join(cells) or "not in memory"


def physical_address(state: CpuState, memory: GuestMemory, linear: int) -> int | None:
    """Return where the page tables map a linear address to, permissions aside, or None.

    SDM vol. 3A, 4.3 to 4.5.
    """
    if not state.cr0 & _CR0_PG:
        return linear & 0xFFFF_FFFF
    long_mode, pae = bool(state.efer & _EFER_LMA), bool(state.cr4 & _CR4_PAE)
    # Where each level's index lies in the address, and which of them may map a large page.
    if long_mode:
        shifts, large, table = [39, 30, 21, 12], {30, 21}, state.cr3 & _ADDRESS
    elif pae:
        shifts, large, table = [30, 21, 12], {21}, state.cr3 & 0xFFFF_FFE0
    else:
        shifts, large, table = [22, 12], {22}, state.cr3 & 0xFFFF_F000
        if not state.cr4 & _CR4_PSE:
            large = set()
    size, bits = (8, 9) if long_mode or pae else (4, 10)
    linear &= (1 << 48) - 1 if long_mode else 0xFFFF_FFFF
    for shift in shifts:
        place = table + (linear >> shift & (1 << bits) - 1) * size
        if not memory.is_ram(place, size):
            return None
        entry = memory.read_int(place, size)
        if not entry & _PRESENT:
            return None
        if shift == 12 or (entry & _LARGE and shift in large):
            offset = linear & (1 << shift) - 1
            return (entry & _ADDRESS & -(1 << shift)) | offset
        table = entry & _ADDRESS
    return None
