"""Fences, cache-line flushes, 3DNow! prefetches.

Guest memory is coherent and the host orders memory no weaker than x86, so the
hints do nothing and the fences are the host's. Intel SDM vol. 2.
"""

from __future__ import annotations

from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import host_asm


@instruction("NP 0F AE /5:r", fast=True)
def lfence(m: Operation) -> None:
    "LFENCE: the host's own, as RDTSC waits for no other (Intel SDM vol. 2B)."
    host_asm(None, "lfence", "~{memory}")


@instruction("NP 0F AE /6:r", fast=True)
def mfence(m: Operation) -> None:
    "MFENCE: the host's own, as some systems order RDTSC by it (AMD APM vol. 2, 7.1.3)."
    host_asm(None, "mfence", "~{memory}")


@instruction("NP 0F AE /7:r", fast=True)
def sfence(m: Operation) -> None:
    "SFENCE."
    host_asm(None, "sfence", "~{memory}")


@instruction("0F 0D /r:m : M", fast=True)
def prefetchw(m: Operation) -> None:
    "PREFETCHW and the rest of its group (AMD APM vol. 3): never faults."


@instruction("NP 0F AE /7:m : Mb", "66 0F AE /7:m : Mb")
def clflush(m: Operation) -> None:
    "CLFLUSH, CLFLUSHOPT (Intel SDM vol. 2A): faults as a load of a byte does."
    m.read(0)
