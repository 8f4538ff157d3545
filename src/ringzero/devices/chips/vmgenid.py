"""VM generation identifier (Microsoft, "Virtual Machine Generation ID", revision of 2012).

16 bytes of guest memory that are other ones in every copy of a machine. The
guest finds them through ACPI and hears of a change by an event; Linux (since
5.18) then reseeds its random numbers at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from ringzero.core.irq import IrqLine
from ringzero.core.memory import GuestMemory
from ringzero.devices.contract import DEVICES, Device
from ringzero.errors import StateError
from ringzero.records import record

IDENTIFIER_SIZE = 16


@record
class VmGenerationIdState:
    """The identifier, as it lies in guest memory unless the guest wrote over it."""

    identifier: bytes


@DEVICES.register("vmgenid")
class VmGenerationId(Device[VmGenerationIdState]):
    """Keeps the identifier at guest-physical `address`, which is a multiple of 8.

    `line` is pulsed when it changes. The device has no registers.
    """

    state_type = VmGenerationIdState

    def __init__(
        self,
        memory: GuestMemory,
        address: int,
        line: IrqLine,
        source: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._memory = memory
        self._address = address
        self._line = line
        self._identifier = source(IDENTIFIER_SIZE)
        self._publish()

    def _publish(self) -> None:
        # A machine of a few pages, as tests have them, may end below the address.
        if self._memory.is_ram(self._address, IDENTIFIER_SIZE):
            self._memory.write(self._address, self._identifier)

    @property
    def identifier(self) -> bytes:
        """The identifier that the guest was given last."""
        return self._identifier

    def renew(self, identifier: bytes) -> None:
        """Give the guest another identifier and tell it; for a clone, before it goes on.

        Raises StateError unless it has 16 bytes.
        """
        if len(identifier) != IDENTIFIER_SIZE:
            raise StateError("vmgenid: an identifier has 16 bytes", seen=len(identifier))
        self._identifier = identifier
        self._publish()
        self._line.pulse()

    def repeat(self) -> None:
        """Have the guest look at the identifier, which is the one that it had."""
        self._line.pulse()

    def reset(self) -> None:
        """Keep the identifier (a reboot makes no new machine), where the guest must find it."""
        self._publish()

    def read(self, offset: int, width: int) -> int:
        """Read nothing: the device has no registers."""
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """Ignore the write: the device has no registers."""

    def save(self) -> VmGenerationIdState:
        return VmGenerationIdState(self._identifier)

    def restore(self, state: VmGenerationIdState) -> None:
        if len(state.identifier) != IDENTIFIER_SIZE:
            raise StateError("vmgenid: an identifier has 16 bytes", seen=len(state.identifier))
        # Guest memory is restored by itself, and has the same bytes.
        self._identifier = state.identifier
