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
    """A vCPU's own interrupt controller, as an engine that keeps none asks the board's.

    An ISA may ask for more (`ringzero.engine.x86.LocalApic`). Times are values
    of the guest's counter (`Vm.read_counter`).
    """

    def pending(self) -> bool:
        """Return whether an interrupt of sufficient priority waits for the vCPU."""
        ...

    def acknowledge(self) -> int | None:
        """Take the waiting interrupt with the highest priority and return its number."""
        ...

    def deadline(self) -> int | None:
        """Return the counter's value at which the timer fires, or None when it is not armed."""
        ...

    def expire(self) -> None:
        """Let the timer act; called when the counter may have reached `deadline()`."""
        ...

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever one of the answers above may have changed, from any thread."""
        ...


class StartControl(Protocol):
    """What resets and starts one vCPU on behalf of the guest, from any thread.

    On x86 a local APIC gets INIT and STARTUP messages; on AArch64 the firmware
    interface is PSCI.
    """

    def reset(self) -> None:
        """Take the vCPU offline before its next instruction, until it is started again."""
        ...

    def start(self, entry: int, context: int = 0) -> None:
        """Let an offline vCPU begin; of several calls the first counts, of a running one none.

        `entry` and `context` are what the ISA's message carries
        (`Architecture.started`): STARTUP's vector; PSCI's entry point and context.
        """
        ...
