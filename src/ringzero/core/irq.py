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
        # What knows the level better, where others lower the wire (`InterruptStatus.share`).
        self.source: SharedStatus | None = None

    def set(self, level: bool) -> None:
        """Drive the wire high (True) or low (False)."""
        if level != self.level:
            self.level = level
            self._sink(level)

    def rise(self) -> None:
        """Raise the wire, which others may have lowered without its being told: one edge."""
        self._sink(False)
        self.level = True
        self._sink(True)

    def pulse(self) -> None:
        """Raise and lower the wire: one edge."""
        self.set(True)
        self.set(False)


class SharedStatus(Protocol):
    """An interrupt status register that an engine serves to the guest (`Vm.share_status`).

    `value` is what it holds. Other threads clear bits at any time, those of the guest.
    """

    value: int

    def set(self, reasons: int) -> bool:
        """Set bits; True when the first was, and its interrupt is the caller's to send."""
        ...

    def clear(self, reasons: int) -> int:
        """Clear bits; return those that are left."""
        ...

    def route(self, receiver: int, vector: int) -> None:
        """Have the interrupt sent to one vCPU, known by its controller; 0: by the caller."""
        ...


class InterruptStatus:
    """A device's interrupt status register: why it interrupts, one reason a bit.

    The wire `irq` rises with the first reason, and falls when those are cleared that were seen;
    for others that came meanwhile it rises again. The caller sees to it that one thread at a
    time changes it, but for the guest's clearing by way of an engine.
    """

    def __init__(self, irq: IrqLine) -> None:
        self._irq = irq
        self._value = 0
        self._shared: SharedStatus | None = None

    @property
    def value(self) -> int:
        return self._value if self._shared is None else self._shared.value

    def share(self, shared: SharedStatus) -> None:
        """Have an engine hold it from now on."""
        shared.value = self._value
        self._shared = self._irq.source = shared

    def set(self, reasons: int) -> None:
        """Set bits."""
        if self._shared is not None:
            if self._shared.set(reasons):
                self._irq.rise()
        else:
            self._value |= reasons
            self._irq.set(True)

    def clear(self, reasons: int) -> None:
        """Clear bits."""
        if self._shared is not None:
            left = self._shared.clear(reasons)
        else:
            left = self._value = self._value & ~reasons
        if left:
            self._irq.rise()
        else:
            self._irq.set(False)

    def restore(self, value: int) -> None:
        """Put a saved value back; the wire's other end restores the level itself."""
        if self._shared is not None:
            self._shared.value = value
        self._value = value
        self._irq.level = bool(value)


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
