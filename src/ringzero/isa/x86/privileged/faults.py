"""Leaving an instruction midway: guest faults and exits to the run loop.

Both abandon the native frames of the instruction; the run loop (native part)
goes on from its own frame. Registers that the semantic function has not yet
changed are as they were, which makes faults precise.
"""

from __future__ import annotations

from ringzero.isa.execution import LEAVE_FAULT, abandon, ask_outside
from ringzero.isa.x86.cpu import CR0_TS, CR4_OSXSAVE, GP, NM, SS_FAULT, UD, XCR0_AVX, XCR0_SSE, Cpu
from ringzero.native import native, u32, u64


@native(noreturn=True)
def leave(cpu: Cpu, code: u32) -> None:
    """Abandon the instruction and go on in the run loop as `code` says."""
    abandon(cpu, code)


@native(noreturn=True)
def raise_fault(cpu: Cpu, vector: u32) -> None:
    """Raise an exception without an error code."""
    cpu.fault_vector = vector
    cpu.fault_has_code = 0
    cpu.fault_code = 0
    leave(cpu, LEAVE_FAULT)


@native(noreturn=True)
def raise_fault_code(cpu: Cpu, vector: u32, code: u64) -> None:
    """Raise an exception with an error code."""
    cpu.fault_vector = vector
    cpu.fault_has_code = 1
    cpu.fault_code = code
    leave(cpu, LEAVE_FAULT)


@native(noreturn=True)
def raise_gp0(cpu: Cpu) -> None:
    """Raise #GP(0)."""
    raise_fault_code(cpu, GP, 0)


@native(noreturn=True)
def raise_ss0(cpu: Cpu) -> None:
    """Raise #SS(0)."""
    raise_fault_code(cpu, SS_FAULT, 0)


@native(noreturn=True)
def raise_ud(cpu: Cpu) -> None:
    """Raise #UD."""
    raise_fault(cpu, UD)


@native(inline="never")
def require_avx(cpu: Cpu) -> None:
    """Raise #UD unless the operating system saves YMM registers, #NM with CR0.TS.

    SDM vol. 2A, table 2-18 (exception classes of instructions with a VEX prefix).
    """
    needed = XCR0_SSE | XCR0_AVX
    if (cpu.cr4 & CR4_OSXSAVE) == 0 or (cpu.xcr0 & needed) != needed:
        raise_ud(cpu)
    if (cpu.cr0 & CR0_TS) != 0:
        raise_fault(cpu, NM)


@native(inline="never")
def external(cpu: Cpu, kind: u32, address: u64, width: u32, value: u64) -> u64:
    """Do an access that Python answers (EXIT_PORT_READ ... EXIT_MSR_WRITE); return its result."""
    return ask_outside(cpu, kind, address, width, value, raise_gp0, leave)
