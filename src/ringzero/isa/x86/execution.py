"""What `jit.entry` puts around the run loops of x86."""

from __future__ import annotations

from ringzero.isa.execution import Execution
from ringzero.isa.x86.cpu import Cpu
from ringzero.isa.x86.insn.mxcsr import leave_host, load_host
from ringzero.isa.x86.interpreter import after_leave
from ringzero.isa.x86.privileged.apic import settle_eoi
from ringzero.isa.x86.privileged.exclusive import enter_guest, leave_guest
from ringzero.native import native


@native(inline="never")
def enter(cpu: Cpu) -> None:
    """Go into guest code, with the guest's floating-point control."""
    enter_guest(cpu)
    load_host(cpu)


@native(inline="never")
def leave(cpu: Cpu) -> None:
    """Leave guest code: from now on others may look at what its local APIC has in service."""
    settle_eoi(cpu)
    leave_host(cpu)
    leave_guest(cpu)


EXECUTION = Execution(Cpu, after_leave, enter, leave)
