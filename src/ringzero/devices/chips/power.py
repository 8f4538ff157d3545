"""Sleep and reset registers of hardware-reduced ACPI (ACPI 6.5 sections 4.8.3.7, 4.8.3.6)."""

from __future__ import annotations

from collections.abc import Callable

from ringzero.devices.contract import DEVICES, ByteDevice
from ringzero.records import record

SLEEP_CONTROL, SLEEP_STATUS, RESET = 0, 1, 2
SLEEP_ENABLE = 0x20
# The sleep type that the board's \_S5 object names.
SLEEP_TYPE_OFF = 5
# The value that the board's FADT gives for the reset register.
RESET_VALUE = 1


@record
class PowerState:
    """The sleep-control register as last written, without SLP_EN, which reads as 0."""

    control: int


@DEVICES.register("power")
class Power(ByteDevice[PowerState]):
    """Three byte registers: sleep control, sleep status, reset.

    `power_off()` and `reboot()` are called on the vCPU's thread that asks.
    """

    state_type = PowerState

    def __init__(self, power_off: Callable[[], None], reboot: Callable[[], None]) -> None:
        self._power_off = power_off
        self._reboot = reboot
        self._control = 0

    def reset(self) -> None:
        self._control = 0

    def read_byte(self, offset: int) -> int:
        if offset == SLEEP_CONTROL:
            return self._control
        # The machine never slept, so there is never a wake-up to report.
        return 0

    def write_byte(self, offset: int, value: int) -> None:
        if offset == SLEEP_CONTROL:
            self._control = value & ~SLEEP_ENABLE
            if value & SLEEP_ENABLE and value >> 2 & 7 == SLEEP_TYPE_OFF:
                self._power_off()
        elif offset == RESET and value == RESET_VALUE:
            self._reboot()

    def save(self) -> PowerState:
        return PowerState(self._control)

    def restore(self, state: PowerState) -> None:
        self._control = state.control & 0xFF & ~SLEEP_ENABLE
