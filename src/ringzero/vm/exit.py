"""How a machine's run ended, as a value."""

from __future__ import annotations

import enum

from ringzero.errors import GuestError, GuestPanicError, TripleFaultError
from ringzero.records import record
from ringzero.vm.guest import linux


class ExitReason(enum.Enum):
    """Why a machine does not run any more."""

    POWEROFF = "poweroff"
    REBOOT = "reboot"
    PANIC = "panic"
    TRIPLE_FAULT = "triple-fault"
    STOPPED = "stopped"


@record
class Exit:
    """The end of a run: the reason, and what is known about it (registers, last lines)."""

    reason: ExitReason
    detail: str = ""

    @classmethod
    def of_panic(cls, said: str) -> Exit:
        """Return the end that a panic is, after `said` on the serial line."""
        return cls(ExitReason.PANIC, linux.last_words(said))

    @classmethod
    def of_reset(cls, reason: ExitReason, detail: str, said: str) -> Exit:
        """Return the end that a reset or shutdown of the CPU is, after `said` on the serial line.

        A kernel that panicked without a driver for the panic device resets, too, and one that
        reboots may do so by a triple fault.
        """
        if linux.panicked(said):
            return cls.of_panic(said)
        if linux.restarted(said):
            return cls(ExitReason.REBOOT)
        return cls(reason, detail)

    @property
    def panic(self) -> str:
        """What is said of a panic in one line: Linux's own, where it was seen."""
        cause = linux.panic_cause(self.detail)
        return f"the guest's kernel panicked: {cause}" if cause else "the guest's kernel panicked"

    def interruption(self) -> GuestError:
        """Return the error for what was still asked of the guest when it ended."""
        return self.error() or GuestError(f"the guest ended ({self.reason.value})")

    def error(self) -> GuestError | None:
        """Return the error that a bad end is, or None for a good one."""
        text = f"\n{self.detail}" if self.detail else ""
        if self.reason is ExitReason.PANIC:
            return GuestPanicError(f"{self.panic}{text}")
        if self.reason is ExitReason.TRIPLE_FAULT:
            return TripleFaultError(f"the guest's CPU shut down after a triple fault{text}")
        return None
