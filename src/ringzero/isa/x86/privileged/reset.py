"""The state of a vCPU after RESET, INIT and SIPI (Intel SDM vol. 3A, table 10-1 and 8.4.2)."""

from __future__ import annotations

from dataclasses import replace

from ringzero.isa.x86.state import (
    CR0_RESET,
    MP_INIT_RECEIVED,
    MP_RUNNABLE,
    CpuState,
    Segment,
)

_CR0_CACHE_BITS = 3 << 29  # CD and NW: INIT leaves them as they are
_CR0_ET = 1 << 4


def after_reset(signature: int) -> CpuState:
    """Return the state after power-up; `signature` is CPUID.1:EAX, which EDX then holds."""
    return CpuState().with_gpr(rdx=signature)


def after_init(state: CpuState, signature: int) -> CpuState:
    """Return what INIT makes of a state: x87, SSE, MSRs, TSC and XCR0 stay; it waits for SIPI."""
    reset = after_reset(signature)
    return replace(
        reset,
        cr0=state.cr0 & _CR0_CACHE_BITS & CR0_RESET | _CR0_ET,
        xcr0=state.xcr0,
        xsave=state.xsave,
        msrs=dict(state.msrs),
        tsc=state.tsc,
        lapic=state.lapic,
        mp_state=MP_INIT_RECEIVED,
    )


def after_sipi(state: CpuState, vector: int) -> CpuState:
    """Return the state in which a startup IPI sets a vCPU running, at `vector` << 12."""
    code = state.cs
    return replace(
        state,
        cs=Segment(vector << 8, vector << 12, code.limit, code.attributes),
        rip=0,
        mp_state=MP_RUNNABLE,
    )
