"""The one use of the keyboard controller's command port that is left: resetting the machine."""

from __future__ import annotations

from collections.abc import Callable

from ringzero.devices.contract import DEVICES, ByteDevice
from ringzero.records import record

# IBM PC/AT Technical Reference: pulse output line 0, which is wired to the CPU's reset.
COMMAND_RESET = 0xFE


@record
class I8042State:
    """Nothing: no keyboard is connected."""


@DEVICES.register("i8042")
class I8042(ByteDevice[I8042State]):
    """Port 0x64 alone: status reads as "ready, no data"; 0xFE calls `reboot()`."""

    state_type = I8042State

    def __init__(self, reboot: Callable[[], None]) -> None:
        self._reboot = reboot

    def reset(self) -> None:
        """There is nothing to reset."""

    def read_byte(self, offset: int) -> int:
        return 0

    def write_byte(self, offset: int, value: int) -> None:
        if offset == 0 and value == COMMAND_RESET:
            self._reboot()

    def save(self) -> I8042State:
        return I8042State()

    def restore(self, state: I8042State) -> None:
        """There is nothing to restore."""
