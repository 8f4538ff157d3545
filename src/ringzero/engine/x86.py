"""What engines of x86 have beyond the common contract: exits, and the local APIC they ask."""

from __future__ import annotations

from collections.abc import MutableSequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from ringzero.core.irq import LocalInterrupts
from ringzero.engine.exits import Access, Exit
from ringzero.records import record


class PortRead(Access):
    """IN or INS of `width` bytes; answer with `complete`."""

    __slots__ = ("port", "width")

    def __init__(self, port: int, width: int) -> None:
        self.port, self.width = port, width


class PortWrite(Access):
    """OUT or OUTS of `width` bytes."""

    __slots__ = ("port", "value", "width")

    def __init__(self, port: int, width: int, value: int) -> None:
        self.port, self.width, self.value = port, width, value


@record
class MsrRead(Exit):
    """RDMSR of a register the engine does not keep; answer with `complete`, or None for #GP."""

    index: int


@record
class MsrWrite(Exit):
    """WRMSR of a register the engine does not keep; `complete(None)` gives #GP.

    Needs no `complete` when it succeeded.
    """

    index: int
    value: int


class ApicRegisters(Protocol):
    """Where a local APIC has its registers, by their names (`isa.x86.apic`).

    What the device sets is set at once, from its vCPU's thread or while that stands still.
    """

    lvt: MutableSequence[int]
    # What an engine knows the vCPU by where it interrupts that itself (`core.irq.SharedStatus`).
    receiver: int

    def request(self, vector: int, level: bool) -> None:
        """Enter an interrupt among those requested; from any thread."""
        ...

    def standing_still(self) -> AbstractContextManager[None]:
        """Return what keeps the machine's vCPUs from guest code; not for a thread in a guest."""
        ...


class LocalApic(LocalInterrupts, Protocol):
    """A vCPU's local APIC, as an engine that keeps none asks the board's (SDM vol. 3A, 11)."""

    def nmi_pending(self) -> bool:
        """Return whether a non-maskable interrupt waits for the vCPU."""
        ...

    def take_nmi(self) -> bool:
        """Return whether a non-maskable interrupt waits, and take it."""
        ...

    def get_task_priority(self) -> int:
        """Return CR8: bits 7:4 of the task-priority register."""
        ...

    def set_task_priority(self, value: int) -> None:
        """Take a write of CR8 (0-15)."""
        ...


@runtime_checkable
class MovableApic(LocalApic, Protocol):
    """A local APIC whose registers an engine may have, so as to work on them itself."""

    # Its setters take what they are given as registers do; attributes are the registers.
    def move_registers(self, registers: Any) -> None:
        """Hold the registers in `registers` (an `ApicRegisters`) from now on."""
        ...
