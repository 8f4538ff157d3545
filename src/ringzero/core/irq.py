"""Interrupts between devices, interrupt controllers and vCPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class IrqLine:
    """One wire into an interrupt controller; handed to the device that drives it.

    `sink(level)` is called on every change of level, from any thread.
    """

    def __init__(self, sink: Callable[[bool], None]) -> None:
        self._sink = sink
        self.level = False

    def set(self, level: bool) -> None:
        """Drive the wire high (True) or low (False)."""
        if level != self.level:
            self.level = level
            self._sink(level)

    def pulse(self) -> None:
        """Raise and lower the wire: one edge."""
        self.set(True)
        self.set(False)


class LocalInterrupts(Protocol):
    """A vCPU's own interrupt controller (local APIC), as an engine without one sees it.

    Times are values of the guest's time-stamp counter.
    """

    def pending(self) -> bool:
        """Return whether an interrupt of sufficient priority waits for the vCPU."""
        ...

    def acknowledge(self) -> int | None:
        """Take the waiting interrupt with the highest priority and return its vector."""
        ...

    def nmi_pending(self) -> bool:
        """Return whether a non-maskable interrupt waits for the vCPU."""
        ...

    def take_nmi(self) -> bool:
        """Return whether a non-maskable interrupt waits, and take it."""
        ...

    def deadline(self) -> int | None:
        """Return the TSC value at which the timer fires, or None when it is not armed."""
        ...

    def expire(self) -> None:
        """Let the timer act; called when the TSC may have reached `deadline()`."""
        ...

    def get_task_priority(self) -> int:
        """Return CR8: bits 7:4 of the task-priority register."""
        ...

    def set_task_priority(self, value: int) -> None:
        """Take a write of CR8 (0-15)."""
        ...

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever one of the answers above may have changed, from any thread."""
        ...
