"""What a slot is: where one device sits on a board, and by which transport the guest reaches it.

A board has one or more `Slots`, each a kind of place: windows of memory for virtio over MMIO,
functions of a PCI bus. It gives every device that a user asks for to one of them. A device knows
nothing of its slot, nor a slot what the device does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ringzero.core.irq import SharedStatus
from ringzero.devices.contract import Device
from ringzero.devices.virtio.device import VirtioDevice
from ringzero.records import record

if TYPE_CHECKING:
    from ringzero.core.transmit import TransmitDrain


@record
class Doorbell:
    """A guest's write of `value` to `address` that only rings a device: no one waits for it."""

    address: int
    width: int
    value: int
    ring: Callable[[], None]


@record
class StatusRegister:
    """An interrupt status register at `status`; writes to `acknowledge` clear bits of it.

    `share` takes what holds it where an engine serves it to the guest.
    """

    status: int
    acknowledge: int
    share: Callable[[SharedStatus], None]


@record
class TransmitQueue:
    """A transmit virtqueue of which writes of `number` to `address` notify.

    `share` takes what drains it where an engine does, and `ready` is told of output there.
    """

    address: int
    number: int
    share: Callable[[TransmitDrain], None]
    ready: Callable[[], None]


class Slot:
    """A device in its place. `part` is what the guest reaches: a transport with `device` behind it.

    `device` is None where the part is the device itself, without a transport.
    """

    def __init__(self, part: Device[Any], device: VirtioDevice[Any] | None) -> None:
        self.part = part
        self.device = device

    @property
    def failure(self) -> str | None:
        """Why the device serves its driver no more, which has broken the rules."""
        return None

    def doorbells(self) -> Iterator[Doorbell]:
        """Yield what an engine may serve without leaving the guest (virtqueue notifications)."""
        yield from ()

    def status_registers(self) -> Iterator[StatusRegister]:
        """Yield what says why the device interrupts, which an engine may hold."""
        yield from ()

    def transmit_queues(self) -> Iterator[TransmitQueue]:
        """Yield the virtqueues that an engine may drain for the device."""
        yield from ()


class Slots(ABC):
    """All places of one kind on a board."""

    @abstractmethod
    def place(self, name: str, device: VirtioDevice[Any]) -> Slot:
        """Put a device into a free slot, where the guest will find it under no other address.

        Raises DeviceError when there is no slot left.
        """
