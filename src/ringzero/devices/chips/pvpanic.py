"""The port through which a Linux guest says that it panicked (QEMU docs/specs/pvpanic.rst)."""

from __future__ import annotations

from collections.abc import Callable

from ringzero.devices.contract import DEVICES, ByteDevice
from ringzero.records import record

PANICKED, CRASH_LOADED = 1, 2


@record
class PvpanicState:
    """Nothing: the device only passes events on."""


@DEVICES.register("pvpanic")
class Pvpanic(ByteDevice[PvpanicState]):
    """One byte: reads give the events known, a write reports one to `panicked()`.

    CRASH_LOADED (a crash kernel takes over) is known and does not stop the machine.
    """

    state_type = PvpanicState

    def __init__(self, panicked: Callable[[], None]) -> None:
        self._panicked = panicked

    def reset(self) -> None:
        """There is nothing to reset."""

    def read_byte(self, offset: int) -> int:
        return PANICKED | CRASH_LOADED if offset == 0 else 0

    def write_byte(self, offset: int, value: int) -> None:
        if offset == 0 and value & PANICKED:
            self._panicked()

    def save(self) -> PvpanicState:
        return PvpanicState()

    def restore(self, state: PvpanicState) -> None:
        """There is nothing to restore."""
