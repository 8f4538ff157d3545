"""MXCSR: the guest's control bits live in the host's register while guest code runs.

SSE arithmetic is done by the host's own instructions, so rounding, DAZ, FTZ
and the sticky flags come from the host's MXCSR. It holds the guest's bits
with every exception masked. `Cpu.mxcsr` holds the guest's control bits always
and its flags up to the last harvest: the guest's flags are the union of both.

    load_host     before guest code runs
    harvest       before anything reads `Cpu.mxcsr`; flags only
    leave_host    after guest code ran: harvest, and the host's own value again

An exception that the guest has unmasked is found by running the operation
with clean flags (`begin`) and looking at them before the result is written
(`end`). While underflow is masked the host reports only tiny results that are
also inexact, but all of them where it flushes them to zero: so it does that
while the guest has underflow unmasked, when a tiny result is never delivered.
Whether such a result was exact is found in precision.py, between the two.

Intel SDM vol. 1, section 10.2.3 (MXCSR) and 11.5 (SIMD floating-point exceptions).
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import CR4_OSXMMEXCPT, UD, XM, Cpu
from ringzero.isa.x86.privileged.faults import raise_fault
from ringzero.native import host_asm, load, native, staged, store, u32

# Sticky flags, their masks 7 bits higher, and the value after reset and in the host.
FLAGS = 0x3F
MASKS = FLAGS << 7
RESET = 0x1F80
PRECISION, DENORMALS_ARE_ZEROES = 1 << 5, 1 << 6
UNDERFLOW_MASK, FLUSH_TO_ZERO = 1 << 11, 1 << 15
# Bits that exist (MXCSR_MASK of FXSAVE): all below 16, DAZ included.
VALID = 0xFFFF


@staged
def read_host(cpu: Cpu) -> Any:
    """Return the host's MXCSR (u32)."""
    room = cpu.scratch.address()
    host_asm(None, "stmxcsr ($0)", "r,~{memory}", room)
    return load(u32, room)


@staged
def write_host(cpu: Cpu, value: Any) -> None:
    """Set the host's MXCSR to a u32."""
    room = cpu.scratch.address()
    store(u32, room, value)
    host_asm(None, "ldmxcsr ($0)", "r,~{memory}", room)


@native(inline="never")
def load_host(cpu: Cpu) -> None:
    """Put the guest's rounding, DAZ, FTZ and flags into the host's MXCSR."""
    write_host(cpu, (cpu.mxcsr & VALID) | MASKS)


@native(inline="never")
def harvest(cpu: Cpu) -> None:
    """Add the flags that the host's MXCSR collected to `cpu.mxcsr`."""
    cpu.mxcsr = cpu.mxcsr | (read_host(cpu) & FLAGS)


@native(inline="never")
def leave_host(cpu: Cpu) -> None:
    """Harvest, then give the host its own MXCSR back."""
    harvest(cpu)
    write_host(cpu, u32(RESET))


@native
def set_mxcsr(cpu: Cpu, value: u32) -> None:
    """Replace the guest's MXCSR, whose reserved bits the caller has checked."""
    cpu.mxcsr = value
    load_host(cpu)
    if (value & MASKS) != MASKS:
        # Translated code does not look for unmasked exceptions.
        cpu.stop_block = u32(1)


@native(inline="never")
def clear_flags(cpu: Cpu) -> None:
    """Move the host's flags to `cpu.mxcsr` and start with clean ones."""
    harvest(cpu)
    value = (cpu.mxcsr & (VALID & ~FLAGS)) | MASKS
    if (cpu.mxcsr & UNDERFLOW_MASK) == 0:
        value = value | FLUSH_TO_ZERO
    write_host(cpu, value)


@native(inline="never")
def raise_unmasked(cpu: Cpu) -> None:
    """Raise #XM (#UD without CR4.OSXMMEXCPT) when a flag of an unmasked exception is up.

    Masked post-computation flags are not reported beside an unmasked
    pre-computation exception (SDM vol. 1, section 11.5.3).
    """
    raised = read_host(cpu) & FLAGS
    enabled = ~(cpu.mxcsr >> 7) & FLAGS
    if (raised & enabled & 7) != 0:
        raised = raised & 7
    cpu.mxcsr = cpu.mxcsr | raised
    load_host(cpu)
    if (raised & enabled) == 0:
        return
    if (cpu.cr4 & CR4_OSXMMEXCPT) == 0:
        raise_fault(cpu, UD)
    raise_fault(cpu, XM)


@staged
def any_unmasked(cpu: Cpu) -> Any:
    """Return whether the guest wants to hear of an exception."""
    return (cpu.mxcsr & MASKS) != MASKS


@staged
def begin(m: Any) -> None:
    """Prepare for an operation that may raise SIMD floating-point exceptions."""
    if m.checked and not m.nested:
        cpu = m.cpu
        if any_unmasked(cpu):
            clear_flags(cpu)


@staged
def end(m: Any) -> None:
    """Raise what the operation since `begin` raised unmasked; call before writing results."""
    if m.checked and not m.nested:
        cpu = m.cpu
        if any_unmasked(cpu):
            raise_unmasked(cpu)
