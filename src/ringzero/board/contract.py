"""What a board is: the machine's hardware around the vCPUs, put together from devices."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from ringzero.board.boot.kernel import KernelImage
from ringzero.board.boot.loading import Loading
from ringzero.core.bus import Bus, MsrBus
from ringzero.core.irq import IrqLine, LocalInterrupts, StartControl
from ringzero.core.memory import GuestMemory
from ringzero.devices.chips.serial import Serial
from ringzero.devices.contract import Device
from ringzero.devices.virtio.device import VirtioDevice
from ringzero.devices.virtio.kinds.console import ConsolePort
from ringzero.devices.virtio.mmio import QUEUE_NOTIFY, VirtioMmio
from ringzero.engine.contract import Vcpu
from ringzero.engine.exits import Exit
from ringzero.isa.contract import Architecture
from ringzero.records import field, record
from ringzero.registry import Registry

if TYPE_CHECKING:
    from ringzero.devices.virtio.kinds.block import BlockBackend


@record
class BoardEvents:
    """Whom the board tells of what the guest does; called on the vCPU's thread."""

    power_off: Callable[[], None]
    reboot: Callable[[], None]
    panic: Callable[[], None]


@record
class BoardParts:
    """What a board is built from. `clock` reads the guest's counter, which runs at `counter_hz`.

    `serial` takes what the guest prints on the first serial port. `now` is
    UTC in seconds. `messages` is given when the engine keeps the vCPUs' own
    interrupt controllers (and the paravirtual clock) itself: it takes
    message-signalled interrupts as (address, data), and the board then has
    none for its vCPUs. `devices` are further virtio devices, by their names in
    saved machines.
    """

    cpus: int
    memory: GuestMemory
    clock: Callable[[], int]
    counter_hz: int
    events: BoardEvents
    serial: Callable[[bytes], None]
    ports: Sequence[ConsolePort] = ()
    disks: Sequence[BlockBackend] = ()
    columns: int = 80
    rows: int = 25
    now: Callable[[], float] = time.time
    messages: Callable[[int, int], bool] | None = None
    devices: Mapping[str, VirtioDevice[Any]] = field(default_factory=dict)


class Processor:
    """What belongs to one vCPU: its view of memory-mapped devices, its interrupt controller.

    `interrupts` is None where the engine keeps the interrupt controllers, and
    then starts the vCPUs too. A board of an ISA that has further exits or
    address spaces derives its own from it.
    """

    def __init__(self, index: int, mmio: Bus, interrupts: LocalInterrupts | None) -> None:
        self.index = index
        self.mmio = mmio
        self.interrupts = interrupts

    @property
    def buses(self) -> Sequence[Bus | MsrBus]:
        """The address spaces that are this vCPU's alone."""
        return ()

    def connect(self, control: StartControl) -> None:
        """Let the guest reset and start the vCPU through `control`."""

    def handlers(self, vcpu: Vcpu[Any]) -> Mapping[type[Exit], Callable[[Any], None]]:
        """Return what serves the exits of `vcpu` that only its ISA has."""
        return {}


@record
class Doorbell:
    """A guest's write of `value` to `address` that only rings a device: no one waits for it."""

    address: int
    width: int
    value: int
    ring: Callable[[], None]


@record
class Latch:
    """A register in which a guest's write only leaves a value: it may be told of it later.

    `port` says whether `address` is a port or a memory address; `size` is in bytes.
    """

    port: bool
    address: int
    size: int


class Board(ABC):
    """A machine's hardware. `parts` holds every device by its unique name.

    `pio` is None where the ISA has no I/O ports.
    """

    # Whose guests run on it.
    architecture: ClassVar[Architecture[Any]]

    mmio: Bus
    pio: Bus | None
    processors: tuple[Processor, ...]
    parts: dict[str, Device[Any]]
    serial: Serial

    @staticmethod
    @abstractmethod
    def ram_layout(size: int) -> list[tuple[int, int]]:
        """Return the (base, size) RAM regions of `size` bytes; raises InvalidValueError."""

    @abstractmethod
    def __init__(self, parts: BoardParts) -> None: ...

    @abstractmethod
    def boot(
        self,
        kernel: KernelImage,
        command_line: str,
        initrd: bytes | memoryview,
        loading: Loading | None = None,
    ) -> list[Any]:
        """Load a kernel; return the first state of each vCPU. Raises GuestImageError.

        States are of the type that the architecture says.

        `loading` is given where kernel and initrd are already being copied.
        """

    @abstractmethod
    def end_of_interrupt(self, number: int) -> None:
        """Take the end of a level-triggered interrupt from an engine's own controller."""

    @abstractmethod
    def resize_console(self, columns: int, rows: int) -> None:
        """Tell the guest the size of its terminal, in characters."""

    @abstractmethod
    def renew_generation(self, identifier: bytes) -> None:
        """Give a copied machine another VM generation identifier, of 16 bytes, and tell it."""

    @abstractmethod
    def irq_line(self) -> IrqLine:
        """Return a free interrupt line for a further device; raises DeviceError."""

    @abstractmethod
    def irq_line_of(self, gsi: int) -> IrqLine:
        """Return the wire of one global system interrupt."""

    def buses(self) -> Iterator[Bus | MsrBus]:
        """Yield every address space, those of single vCPUs last."""
        yield self.mmio
        if self.pio is not None:
            yield self.pio
        for processor in self.processors:
            yield from processor.buses

    def doorbells(self) -> Iterator[Doorbell]:
        """Yield what an engine may serve without leaving the guest (virtqueue notifications)."""
        for attachment in self.mmio.attachments:
            transport = attachment.device
            if isinstance(transport, VirtioMmio):
                for index in range(len(transport.device.queue_sizes)):
                    ring = partial(transport.write, QUEUE_NOTIFY, 4, index)
                    yield Doorbell(attachment.base + QUEUE_NOTIFY, 4, index, ring)

    def latches(self) -> Iterator[Latch]:
        """Yield the registers whose writes an engine may gather."""
        yield from ()

    def stateful(self) -> Iterator[tuple[str, Device[Any] | VirtioDevice[Any]]]:
        """Yield all that has a state, by its name in saved machines, in the order of saving.

        A virtio transport comes before its device, which is called NAME.device.
        """
        for name, part in self.parts.items():
            yield name, part
            if isinstance(part, VirtioMmio):
                yield f"{name}.device", part.device


BOARDS: Registry[type[Board]] = Registry("board", "ringzero.board.machines")
