"""How a machine's run ended, as a value."""

from __future__ import annotations

import enum

from ringzero.errors import GuestError, GuestPanicError, TripleFaultError
from ringzero.records import record

# How every Linux begins its last words.
PANIC_MARK = "Kernel panic - not syncing"


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

    @property
    def panic(self) -> str:
        """What is said of a panic in one line: Linux's own, where it was seen."""
        _, found, said = self.detail.rpartition(PANIC_MARK)
        cause = said.partition("\n")[0].strip(": ") if found else ""
        return f"the guest's kernel panicked: {cause}" if cause else "the guest's kernel panicked"

    def error(self) -> GuestError | None:
        """Return the error that a bad end is, or None for a good one."""
        text = f"\n{self.detail}" if self.detail else ""
        if self.reason is ExitReason.PANIC:
            return GuestPanicError(f"{self.panic}{text}")
        if self.reason is ExitReason.TRIPLE_FAULT:
            return TripleFaultError(f"the guest's CPU shut down after a triple fault{text}")
        return None
