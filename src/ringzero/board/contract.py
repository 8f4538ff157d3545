"""What a board is: the machine's hardware around the vCPUs, put together from devices."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ringzero.board.kernel import KernelImage
from ringzero.core.bus import Bus, MsrBus
from ringzero.core.irq import IrqLine
from ringzero.core.memory import GuestMemory
from ringzero.devices.contract import Device
from ringzero.devices.lapic import Lapic
from ringzero.devices.virtio.block import BlockBackend
from ringzero.devices.virtio.console import ConsolePort
from ringzero.isa.x86.state import CpuState
from ringzero.registry import Registry


@dataclass(frozen=True)
class BoardEvents:
    """Whom the board tells of what the guest does; called on the vCPU's thread."""

    power_off: Callable[[], None]
    reboot: Callable[[], None]
    panic: Callable[[], None]


@dataclass(frozen=True)
class BoardParts:
    """What a board is built from. `clock` is the guest's TSC, at `tsc_hz`.

    `serial` takes what the guest prints on the first serial port. `now` is
    UTC in seconds.
    """

    cpus: int
    memory: GuestMemory
    clock: Callable[[], int]
    tsc_hz: int
    events: BoardEvents
    serial: Callable[[bytes], None]
    ports: Sequence[ConsolePort] = ()
    disks: Sequence[BlockBackend] = ()
    columns: int = 80
    rows: int = 25
    now: Callable[[], float] = field(default=time.time)


@dataclass(frozen=True)
class Processor:
    """What belongs to one vCPU: its local APIC, and its view of the buses."""

    index: int
    lapic: Lapic
    mmio: Bus
    msrs: MsrBus


class Board(ABC):
    """A machine's hardware. `parts` holds every device by its unique name."""

    mmio: Bus
    pio: Bus
    processors: tuple[Processor, ...]
    parts: dict[str, Device[Any]]

    # The kernel command line that lets Linux find this board's console and skip what it lacks.
    command_line: ClassVar[str] = ""

    @staticmethod
    @abstractmethod
    def ram_layout(size: int) -> list[tuple[int, int]]:
        """Return the (base, size) RAM regions of `size` bytes; raises InvalidValueError."""

    @abstractmethod
    def __init__(self, parts: BoardParts) -> None: ...

    @abstractmethod
    def boot(
        self, kernel: KernelImage, command_line: str, initrd: bytes | memoryview
    ) -> list[CpuState]:
        """Load a kernel; return the first state of each vCPU. Raises GuestImageError."""

    @abstractmethod
    def irq_line(self) -> IrqLine:
        """Return a free interrupt line for a further device; raises DeviceError."""

    @abstractmethod
    def irq_line_of(self, gsi: int) -> IrqLine:
        """Return the wire of one global system interrupt."""

    def devices(self) -> Iterator[tuple[str, Device[Any]]]:
        """Yield every device with its name, in the order of saving and restoring."""
        yield from self.parts.items()


BOARDS: Registry[type[Board]] = Registry(
    "board", "ringzero.board", support=("acpi", "aml", "boot", "contract", "kernel", "memmap")
)
