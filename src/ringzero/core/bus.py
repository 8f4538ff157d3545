"""Address spaces of devices: memory-mapped I/O, ports, model-specific registers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from ringzero.errors import DeviceError

# Addresses whose attachment is remembered. Drivers use a few hundred registers;
# the limit only bounds what a guest that walks through everything costs.
MEMO_LIMIT = 4096


class BusDevice(Protocol):
    """What a device shows to a bus. It sees offsets into its range, never addresses.

    `width` is in bytes: 1, 2, 4 or 8. Whatever a guest does here must not raise.
    """

    def read(self, offset: int, width: int) -> int: ...

    def write(self, offset: int, width: int, value: int) -> None: ...


# Takes what is written to one register, value after value: offset, width, values.
Stream = Callable[[int, int, Sequence[int]], None]


class Show(Protocol):
    """Takes what reading a register of one byte gives from now on.

    None: reads have effects that only the device knows, and are its own. With `once` the first
    read changes the register, to `then`, and the device hears of it later. `then` is also what
    the register becomes by a write that only clears certain bits of the one that it depends on.
    """

    def __call__(self, value: int | None, then: int | None = None, *, once: bool = False) -> None:
        """Show `value`."""
        ...


class Attachment:
    """A device's place on a bus, with the counts that `--stats` shows."""

    __slots__ = ("base", "device", "end", "name", "reads", "size", "stream", "writes")

    def __init__(
        self, name: str, base: int, size: int, device: BusDevice, stream: Stream | None = None
    ) -> None:
        self.stream = stream
        self.name, self.base, self.size, self.end = name, base, size, base + size
        self.device = device
        self.reads = self.writes = 0


class Bus:
    """Routes an access to the device whose range holds it.

    An access to nobody reads as all ones and writes nothing, as on real
    buses, and is counted in `unclaimed`. One that starts in a range and ends
    beyond it goes nowhere too. What a bus with a `parent` does not hold itself
    is looked for there: so a vCPU has its own local APIC at the common address.
    """

    def __init__(self, name: str, parent: Bus | None = None) -> None:
        self.name = name
        self.parent = parent
        self.unclaimed = 0
        self._bases: list[int] = []
        self._attachments: list[Attachment] = []
        # Attachments are never taken away, so that what was found once stays true.
        self._memo: dict[int, Attachment] = {}

    def attach(
        self,
        name: str,
        base: int,
        size: int,
        device: BusDevice,
        stream: Stream | None = None,
    ) -> Attachment:
        """Give `device` the range of `size` at `base`; raises DeviceError on an overlap.

        `stream` is how it takes many values for one register at once, if it has such a way.
        """
        index = bisect_right(self._bases, base)
        neighbours = self._attachments[max(index - 1, 0) : index + 1]
        for other in neighbours:
            if base < other.end and other.base < base + size:
                raise DeviceError(f"{self.name}: {name} at {base:#x} overlaps {other.name}")
        attachment = Attachment(name, base, size, device, stream)
        self._bases.insert(index, base)
        self._attachments.insert(index, attachment)
        return attachment

    def find(self, address: int, width: int = 1) -> Attachment | None:
        """Return the attachment that holds `width` bytes at `address`, if any."""
        attachment = self._memo.get(address)
        if attachment is None:
            attachment = self._search(address)
            if attachment is None:
                return None
            if len(self._memo) >= MEMO_LIMIT:
                self._memo.clear()
            self._memo[address] = attachment
        return attachment if address + width <= attachment.end else None

    def _search(self, address: int) -> Attachment | None:
        index = bisect_right(self._bases, address) - 1
        if index >= 0 and address < self._attachments[index].end:
            return self._attachments[index]
        return self.parent._search(address) if self.parent is not None else None

    def read(self, address: int, width: int) -> int:
        """Return what the guest reads with `width` bytes at `address`."""
        attachment = self.find(address, width)
        mask = (1 << width * 8) - 1
        if attachment is None:
            self.unclaimed += 1
            return mask
        attachment.reads += 1
        return attachment.device.read(address - attachment.base, width) & mask

    def write(self, address: int, width: int, value: int) -> None:
        """Pass on what the guest writes with `width` bytes at `address`."""
        attachment = self.find(address, width)
        if attachment is None:
            self.unclaimed += 1
            return
        attachment.writes += 1
        attachment.device.write(address - attachment.base, width, value)

    def write_all(self, address: int, width: int, values: Sequence[int]) -> None:
        """Pass on what the guest writes to one register, value after value."""
        attachment = self.find(address, width)
        if attachment is None or attachment.stream is None:
            for value in values:
                self.write(address, width, value)
            return
        attachment.writes += len(values)
        attachment.stream(address - attachment.base, width, values)

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        return tuple(self._attachments)

    def unclaimed_by_name(self) -> dict[str, int]:
        """Return how many accesses found nobody, under the bus's name."""
        return {self.name: self.unclaimed}


class MsrDevice(Protocol):
    """A holder of model-specific registers; it sees their architectural numbers."""

    def read_msr(self, index: int) -> int | None:
        """Return the register's 64 bits, or None for #GP."""
        ...

    def write_msr(self, index: int, value: int) -> bool:
        """Take the write; False means #GP."""
        ...


class MsrAttachment:
    """A device's model-specific registers, with the counts that `--stats` shows."""

    def __init__(self, name: str, device: MsrDevice) -> None:
        self.name, self.device = name, device
        self.reads = self.writes = 0


class MsrBus:
    """The model-specific registers of one vCPU that the engine does not keep.

    An access to a register that nobody holds is a #GP and is counted by its
    number in `unclaimed`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.unclaimed: dict[int, int] = {}
        self._holders: dict[int, MsrAttachment] = {}
        self._attachments: list[MsrAttachment] = []

    def attach(self, name: str, indices: Iterable[int], device: MsrDevice) -> MsrAttachment:
        """Give `device` the registers `indices`; raises DeviceError when one is taken."""
        attachment = MsrAttachment(name, device)
        numbers = tuple(indices)
        for index in numbers:
            if index in self._holders:
                raise DeviceError(f"MSR {index:#x}: {name} meets {self._holders[index].name}")
        self._holders.update(dict.fromkeys(numbers, attachment))
        self._attachments.append(attachment)
        return attachment

    def read(self, index: int) -> int | None:
        """Return what RDMSR gives, or None for #GP."""
        attachment = self._holders.get(index)
        if attachment is None:
            self.unclaimed[index] = self.unclaimed.get(index, 0) + 1
            return None
        attachment.reads += 1
        return attachment.device.read_msr(index)

    def write(self, index: int, value: int) -> bool:
        """Pass WRMSR on; False means #GP."""
        attachment = self._holders.get(index)
        if attachment is None:
            self.unclaimed[index] = self.unclaimed.get(index, 0) + 1
            return False
        attachment.writes += 1
        return attachment.device.write_msr(index, value)

    @property
    def attachments(self) -> tuple[MsrAttachment, ...]:
        return tuple(self._attachments)

    def unclaimed_by_name(self) -> dict[str, int]:
        """Return how many accesses found nobody, by register."""
        return {f"msr {index:#x}": count for index, count in self.unclaimed.items()}
