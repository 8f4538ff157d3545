"""What engines of x86 have beyond the common contract: exits, and the local APIC they ask."""

from __future__ import annotations

from typing import Protocol

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
