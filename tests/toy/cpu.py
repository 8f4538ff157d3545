"""The vCPU's struct of the toy ISA, and its state as plain data."""

from __future__ import annotations

from ringzero.isa.execution import MEMBERS
from ringzero.native import Struct, field, u32, u64
from ringzero.native.types import StructType
from ringzero.records import record

REGISTERS = 8
# Causes of exceptions; interrupts come above.
UNKNOWN, FETCH, ACCESS, TRAP, INTERRUPT = 1, 2, 3, 4, 0x100

_OWN = {
    "regs": field(u64, REGISTERS),
    "pc": field(u64),
    "next_pc": field(u64),
    # Where exceptions go (0: nowhere, the CPU shuts down), and what of.
    "vector": field(u64),
    "epc": field(u64),
    "cause": field(u64),
    "enabled": field(u32),  # takes interrupts
    # RAM, which begins at guest-physical 0.
    "ram": field(u64),
    "ram_end": field(u64),
}
_COMMON = {
    name: field(*kind) if isinstance(kind, tuple) else field(kind) for name, kind in MEMBERS.items()
}
Cpu = StructType("Cpu", (Struct,), {**_OWN, **_COMMON})


@record
class ToyState:
    """One vCPU; the defaults are what it is after a reset."""

    regs: tuple[int, ...] = (0,) * REGISTERS
    pc: int = 0
    vector: int = 0
    epc: int = 0
    cause: int = 0
    enabled: bool = False
    counter: int = 0
    halted: bool = False
    offline: bool = False
    # The number of an interrupt that was acknowledged and not yet delivered.
    interrupt: int | None = None
