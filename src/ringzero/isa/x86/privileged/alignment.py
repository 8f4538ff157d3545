"""Which TLB serves accesses: by privilege, and by what RFLAGS.AC means for it.

In the kernel AC suspends SMAP (SDM vol. 3A, 4.6.1). A TLB has no room for it in its tags, so
entries that are made meanwhile have a TLB of their own, `Cpu.tlb_open`.

In user code it asks for #AC for unaligned accesses (6.15). While CR0.AM, RFLAGS.AC and CPL 3
come together, `Cpu.tlb` is one that never matches, `Cpu.tlb_checked`. So every access of
translated code and of handlers takes the slow path of mmu.py, which asks here; nothing else
pays for it.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import AC, ALIGNMENT, CR0_AM, Cpu
from ringzero.isa.x86.privileged.faults import raise_fault_code
from ringzero.native import native, select, staged


@native
def select_tlb(cpu: Cpu) -> None:
    """Set `Cpu.tlb` to what CPL, CR0.AM and RFLAGS.AC ask for."""
    if cpu.cpl != 3:
        cpu.tlb = select((cpu.rflags & AC) != 0, cpu.tlb_open, cpu.tlb_kernel)
    elif alignment_checked(cpu):
        cpu.tlb = cpu.tlb_checked
    else:
        cpu.tlb = cpu.tlb_user


@staged
def may_choose_tlb(cpu: Any) -> Any:
    """Return whether translated code may set `Cpu.tlb` itself.

    Not where accesses are checked, or another thread has called the vCPU to the run loop.
    """
    return cpu.tlb != cpu.tlb_checked


@staged
def alignment_checked(cpu: Any) -> Any:
    """Return whether accesses with the current privilege must be aligned."""
    return (cpu.cpl == 3) & ((cpu.rflags & AC) != 0) & ((cpu.cr0 & CR0_AM) != 0)


@staged
def check_alignment(cpu: Any, va: Any, alignment: Any, user: Any) -> None:
    """Raise #AC(0) where `va` is no multiple of a power of two and that is checked.

    `user` is 0 for implicit supervisor accesses, which are never checked.
    """
    if alignment_checked(cpu) and user != 0 and (va & (alignment - 1)) != 0:
        raise_fault_code(cpu, ALIGNMENT, 0)
