"""x86-64 guests of the software engine."""

from __future__ import annotations

from ringzero.core.memory import GuestMemory
from ringzero.engine.soft.contract import GUESTS
from ringzero.engine.soft.x86.native import native_engine
from ringzero.engine.soft.x86.vm import X86SoftVm
from ringzero.isa.contract import Identification
from ringzero.isa.x86.architecture import EXTENDED_GUEST, X86_64, CpuidTable
from ringzero.isa.x86.cpuid import needs_extensions


@GUESTS.register("x86_64")
def create_vm(memory: GuestMemory, processors: Identification, counter_hz: int) -> X86SoftVm:
    """Return a machine; `processors` is a CpuidTable."""
    assert isinstance(processors, CpuidTable)
    extended = needs_extensions(processors.features)
    engine = native_engine(EXTENDED_GUEST if extended else X86_64.name)
    return X86SoftVm(engine, memory, processors.leaves, counter_hz)
