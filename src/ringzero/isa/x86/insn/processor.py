"""RDSEED, RDPID, CLWB: what newer processors tell of themselves, and do for their caches.

Intel SDM vol. 2, under each name.
"""

from __future__ import annotations

from ringzero.isa.x86.cpu import ARITHMETIC_FLAGS, CF, EXIT_RANDOM
from ringzero.isa.x86.privileged.faults import external
from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation
from ringzero.native import u32, u64


@instruction("0F C7 /7:r : Rv")
def rdseed(m: Operation) -> None:
    """RDSEED: from the host's own generator, as RDRAND; it never runs dry."""
    value = external(m.cpu, u32(EXIT_RANDOM), u64(0), u32(8), u64(0))
    m.write(0, m.T(value))
    m.set_status(u64(CF), ARITHMETIC_FLAGS)


@instruction("F3 0F C7 /7:r : Rq", replaces=True)
def rdpid(m: Operation) -> None:
    """RDPID: IA32_TSC_AUX, whatever the operand size."""
    m.write(0, m.cpu.tsc_aux)


@instruction("66 0F AE /6:m : Mb")
def clwb(m: Operation) -> None:
    """CLWB: faults as a load of a byte does."""
    m.read(0)
