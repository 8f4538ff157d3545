"""What a board is: the machine's hardware around the vCPUs, put together from devices."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ringzero.board.slots.contract import Doorbell, Slot, StatusRegister, TransmitQueue
from ringzero.core.bus import Bus, MsrBus, Show
from ringzero.core.irq import IrqLine, LocalInterrupts, StartControl
from ringzero.core.memory import GuestMemory
from ringzero.devices.contract import Device
from ringzero.devices.virtio.device import VirtioDevice
from ringzero.engine.contract import Vcpu
from ringzero.engine.exits import Exit
from ringzero.errors import DeviceError, InvalidValueError
from ringzero.isa.contract import Architecture
from ringzero.records import field, record
from ringzero.registry import Registry

if TYPE_CHECKING:
    from ringzero.board.boot.kernelimage import KernelImage
    from ringzero.board.boot.loading import Loading


@record
class BoardEvents:
    """Whom the board tells of what the guest does; called on the vCPU's thread."""

    power_off: Callable[[], None]
    reboot: Callable[[], None]
    panic: Callable[[], None]


class SerialPort(Protocol):
    """The first serial port, as the host sees it; its output goes to `BoardParts.serial`."""

    # Called when it takes input again, on the vCPU's thread.
    on_room: Callable[[], None] | None

    def push(self, data: bytes) -> int:
        """Offer input to the guest; return how many bytes were taken."""
        ...


@record
class BoardParts:
    """What a board is built from. `clock` reads the guest's counter, which runs at `counter_hz`.

    `serial` takes what the guest prints on the first serial port. `now` is
    UTC in seconds. `messages` is given when the engine keeps the vCPUs' own
    interrupt controllers (and the paravirtual clock) itself: it takes
    message-signalled interrupts as (address, data), and the board then has
    none for its vCPUs. `devices` are what sits in slots, by their names in saved
    machines, in the order in which the guest finds them.
    """

    cpus: int
    memory: GuestMemory
    clock: Callable[[], int]
    counter_hz: int
    events: BoardEvents
    serial: Callable[[bytes], None]
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
class Latch:
    """A register in which a guest's write only leaves a value: it may be told of it later.

    `port` says whether `address` is a port or a memory address; `size` is in bytes.
    """

    port: bool
    address: int
    size: int
    # Told of it soon, even where the guest does nothing else.
    prompt: bool = False
    # Called once the device has been told, and has served the access before which that was.
    then: Callable[[], None] | None = None
    # The port of the shadowed register that such a write changes.
    changes: int | None = None
    # For a register of which only those writes may wait that clear these bits, and leave the
    # others as they are: `hold` takes what is called with the value that it holds, whenever
    # that has come by another way.
    clears: int = 0
    hold: Callable[[Callable[[int], None]], None] | None = None


@record
class Shadow:
    """A register of one byte at a port for which an engine may answer.

    `connect` takes what is shown the register's value whenever that changes; `read` is called
    after a read that has changed it.
    """

    port: int
    connect: Callable[[Show], None]
    read: Callable[[], None] | None = None


class Board(ABC):
    """A machine's hardware. `parts` holds every device by its unique name.

    `slots` has those that the board placed where it had room; their parts are among `parts`.
    `pio` is None where the ISA has no I/O ports.
    """

    # Whose guests run on it.
    architecture: ClassVar[Architecture[Any]]
    # What its kernel is to speak on (`console=`), instead of a serial port that is not there.
    console: ClassVar[str] = ""

    mmio: Bus
    pio: Bus | None
    processors: tuple[Processor, ...]
    parts: dict[str, Device[Any]]
    slots: dict[str, Slot]
    serial: SerialPort

    @staticmethod
    @abstractmethod
    def ram_layout(size: int) -> list[tuple[int, int]]:
        """Return the (base, size) RAM regions of `size` bytes; raises InvalidValueError."""

    @staticmethod
    def file_layout(size: int, files: Sequence[int]) -> list[tuple[int, int]]:
        """Return the (base, size), above `size` bytes of RAM, of files of such sizes.

        Raises InvalidValueError where the board has no room for any.
        """
        if files:
            raise InvalidValueError("this board has no persistent memory")
        return []

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
    def renew_generation(self, identifier: bytes) -> None:
        """Give a copied machine another VM generation identifier, of 16 bytes, and tell it."""

    @abstractmethod
    def repeat_generation(self) -> None:
        """Tell the guest once more of the VM generation identifier that it has."""

    def press_power_button(self) -> bool:
        """Ask the guest's system to shut down; False where the board has no such button."""
        return False

    @abstractmethod
    def place(self, name: str, device: VirtioDevice[Any]) -> Slot:
        """Put a device into a slot that is fit for it; raises DeviceError when there is none."""

    def add(self, name: str, device: VirtioDevice[Any]) -> Slot:
        """Place a device under a name of its own. Raises DeviceError."""
        if name in self.parts:
            raise DeviceError(f"two devices are called {name!r}")
        slot = self.slots[name] = self.place(name, device)
        self.parts[name] = slot.part
        return slot

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
        """Yield what an engine may serve without leaving the guest."""
        for slot in self.slots.values():
            yield from slot.doorbells()

    def status_registers(self) -> Iterator[StatusRegister]:
        """Yield the interrupt status registers that an engine may hold."""
        for slot in self.slots.values():
            yield from slot.status_registers()

    def transmit_queues(self) -> Iterator[TransmitQueue]:
        """Yield the virtqueues that an engine may drain for their devices."""
        for slot in self.slots.values():
            yield from slot.transmit_queues()

    def latches(self) -> Iterator[Latch]:
        """Yield the registers whose writes an engine may gather."""
        yield from ()

    def shadows(self) -> Iterator[Shadow]:
        """Yield the registers that an engine may answer for."""
        yield from ()

    def stateful(self) -> Iterator[tuple[str, Device[Any] | VirtioDevice[Any]]]:
        """Yield all that has a state, by its name in saved machines, in the order of saving.

        A transport comes before its device, which is called NAME.device.
        """
        for name, part in self.parts.items():
            yield name, part
            slot = self.slots.get(name)
            if slot is not None and slot.device is not None:
                yield f"{name}.device", slot.device


BOARDS: Registry[type[Board]] = Registry("board", "ringzero.board.machines")
