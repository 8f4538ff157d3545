"""Fences, cache-line flushes, 3DNow! prefetches.

Guest memory is coherent and the host orders memory no weaker than x86, so the
hints do nothing and the fences are the host's. Intel SDM vol. 2.
"""

from __future__ import annotations

from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import fence


@instruction("NP 0F AE /5:r", "NP 0F AE /6:r", "NP 0F AE /7:r", name="fence", fast=True)
def fence_(m: Operation) -> None:
    "LFENCE, MFENCE, SFENCE (Intel SDM vol. 2)."
    fence()


@instruction("0F 0D /r:m : M", fast=True)
def prefetchw(m: Operation) -> None:
    "PREFETCHW and the rest of its group (AMD APM vol. 3): never faults."


@instruction("NP 0F AE /7:m : Mb", "66 0F AE /7:m : Mb")
def clflush(m: Operation) -> None:
    "CLFLUSH, CLFLUSHOPT (Intel SDM vol. 2A): faults as a load of a byte does."
    m.read(0)
