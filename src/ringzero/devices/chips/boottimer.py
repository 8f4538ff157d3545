"""The boot timer of Firecracker's boards: a byte by which a guest says that it has booted."""

from __future__ import annotations

from collections.abc import Callable

from ringzero.devices.contract import DEVICES, Device
from ringzero.records import record

# What a guest writes, as a single byte at the first address.
BOOTED = 123
# Guest-physical: where Firecracker has it on x86-64, at the beginning of what is no RAM.
ADDRESS, SIZE = 0xC000_0000, 0x1000


@record
class BootTimerState:
    """Nothing: the device only passes events on."""


@DEVICES.register("boottimer")
class BootTimer(Device[BootTimerState]):
    """Calls `booted()` whenever the guest says so."""

    state_type = BootTimerState

    def __init__(self, booted: Callable[[], None]) -> None:
        self._booted = booted

    def reset(self) -> None:
        """There is nothing to reset."""

    def read(self, offset: int, width: int) -> int:
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        if (offset, width, value) == (0, 1, BOOTED):
            self._booted()

    def save(self) -> BootTimerState:
        return BootTimerState()

    def restore(self, state: BootTimerState) -> None:
        """There is nothing to restore."""
