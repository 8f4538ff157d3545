"""What a device is: registers at offsets, a reset, a state; and the registry of all of them.

Locking. Register accesses come from vCPU threads, input from host threads, so
a device with both guards itself with a lock of its own. Locks are taken in
the direction in which an interrupt travels: device, I/O APIC, local APIC,
vCPU; nothing calls back against it while it holds its lock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from ringzero.registry import Registry

S = TypeVar("S")


class Device(ABC, Generic[S]):
    """A part with registers on a bus (`ringzero.core.bus.BusDevice`) and a state.

    `state_type` is the frozen dataclass that `save` returns. Host resources
    (memory, files, interrupt lines, callbacks) go to the constructor. Whatever
    the guest reads or writes, of whatever width, must not raise.
    """

    state_type: ClassVar[type[Any]]

    @abstractmethod
    def read(self, offset: int, width: int) -> int:
        """Return what the guest reads with `width` bytes at `offset`."""

    @abstractmethod
    def write(self, offset: int, width: int, value: int) -> None:
        """Take what the guest writes with `width` bytes at `offset`."""

    @abstractmethod
    def reset(self) -> None:
        """Go back to the state after power-on; work in flight is dropped."""

    @abstractmethod
    def save(self) -> S:
        """Return the whole state; only called between `pause` and `resume`."""

    @abstractmethod
    def restore(self, state: S) -> None:
        """Put a saved state back; raises StateError when it does not fit."""

    def pause(self) -> None:
        """Finish or stop what is in flight; afterwards the state stands still."""

    def resume(self) -> None:
        """Go on after `pause`, or start after `restore`."""

    def close(self) -> None:
        """Give threads and host resources back; called once, at the machine's end."""


class ByteDevice(Device[S]):
    """A device with 8-bit registers: wider accesses are split, as the ISA bus does."""

    @abstractmethod
    def read_byte(self, offset: int) -> int:
        """Return the register at `offset`, 0-255."""

    @abstractmethod
    def write_byte(self, offset: int, value: int) -> None:
        """Take `value`, 0-255, into the register at `offset`."""

    def read(self, offset: int, width: int) -> int:
        if width == 1:
            return self.read_byte(offset)
        return sum(self.read_byte(offset + i) << 8 * i for i in range(width))

    def write(self, offset: int, width: int, value: int) -> None:
        if width == 1:
            self.write_byte(offset, value & 0xFF)
            return
        for i in range(width):
            self.write_byte(offset + i, value >> 8 * i & 0xFF)


DEVICES: Registry[type[Device[Any]]] = Registry(
    "device", "ringzero.devices.chips", "ringzero.devices.interrupts"
)
