"""A board for the toy ISA: a serial port, and per vCPU an interrupt controller with a timer.

| address | register |
|---|---|
| 0x1000_0000 | 16550 serial port, eight bytes |
| 0x2000_0000 | power: a write of 1 ends the machine |
| 0x2000_0008 | a write of N takes vCPU N offline |
| 0x2000_0100 + 8 N | a write starts vCPU N at the address written; r0 is then N |
| 0x4000_0000 + 0x1000 N | window of the Nth virtio device |
| 0x3000_0000 | the vCPU's own timer: a write of T raises interrupt 1 in T ticks of the counter |
| 0x3000_0100 + 8 N | a write raises the interrupt written on vCPU N |
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ringzero.board.contract import Board, BoardParts, Processor
from ringzero.board.slots.contract import Slot
from ringzero.board.slots.mmio import MmioSlots
from ringzero.core.bus import Bus
from ringzero.core.irq import IrqLine, StartControl
from ringzero.devices.chips.serial import Serial
from ringzero.devices.contract import Device
from ringzero.devices.virtio.device import VirtioDevice
from ringzero.errors import GuestImageError
from ringzero.records import record
from tests.toy.architecture import TOY

SERIAL, POWER, TIMER, WINDOWS = 0x1000_0000, 0x2000_0000, 0x3000_0000, 0x4000_0000
STRIDE = 0x1000
SIZE = 0x200
OFFLINE, ENTRIES, SENDS = 0x08, 0x100, 0x100
TIMER_IRQ, SERIAL_IRQ, FIRST_FREE_IRQ = 1, 4, 16


@record
class ControllerState:
    pending: tuple[int, ...]
    deadline: int | None


class Controller(Device[ControllerState]):
    """One vCPU's interrupts, numbered; the lowest comes first. Implements `LocalInterrupts`."""

    state_type = ControllerState

    def __init__(self, clock: Callable[[], int], peers: list[Controller]) -> None:
        self._clock = clock
        self._peers = peers
        self._lock = threading.Lock()
        self._pending: set[int] = set()
        self._deadline: int | None = None
        self._wake: Callable[[], None] = lambda: None

    def raise_irq(self, number: int) -> None:
        with self._lock:
            self._pending.add(number)
        self._wake()

    def pending(self) -> bool:
        return bool(self._pending)

    def acknowledge(self) -> int | None:
        with self._lock:
            if not self._pending:
                return None
            number = min(self._pending)
            self._pending.discard(number)
            return number

    def deadline(self) -> int | None:
        return self._deadline

    def expire(self) -> None:
        if self._deadline is not None and self._clock() >= self._deadline:
            self._deadline = None
            self.raise_irq(TIMER_IRQ)

    def on_change(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def read(self, offset: int, width: int) -> int:
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        if offset == 0:
            self._deadline = self._clock() + value
            self._wake()
        elif offset >= SENDS and (number := (offset - SENDS) // 8) < len(self._peers):
            self._peers[number].raise_irq(value & 0xFF)

    def reset(self) -> None:
        self._pending, self._deadline = set(), None

    def save(self) -> ControllerState:
        return ControllerState(tuple(sorted(self._pending)), self._deadline)

    def restore(self, state: ControllerState) -> None:
        self._pending, self._deadline = set(state.pending), state.deadline


@record
class PowerState:
    """It has none."""


class Power(Device[PowerState]):
    """Ends the machine, and starts and stops vCPUs."""

    state_type = PowerState

    def __init__(self, off: Callable[[], None], controls: dict[int, StartControl]) -> None:
        self._off = off
        self._controls = controls

    def read(self, offset: int, width: int) -> int:
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        if offset == 0 and value == 1:
            self._off()
        elif offset == OFFLINE and value in self._controls:
            self._controls[value].reset()
        elif offset >= ENTRIES and (number := (offset - ENTRIES) // 8) in self._controls:
            self._controls[number].start(value, number)

    def reset(self) -> None: ...

    def save(self) -> PowerState:
        return PowerState()

    def restore(self, state: PowerState) -> None: ...


class ToyProcessor(Processor):
    def __init__(
        self, index: int, mmio: Bus, controller: Controller, controls: dict[int, StartControl]
    ) -> None:
        super().__init__(index, mmio, controller)
        self._controls = controls

    @property
    def buses(self) -> Sequence[Bus]:
        return (self.mmio,)

    def connect(self, control: StartControl) -> None:
        self._controls[self.index] = control


class ToyBoard(Board):
    """Implements the contract; boots nothing: tests load their programs themselves."""

    architecture = TOY
    pio = None

    @staticmethod
    def ram_layout(size: int) -> list[tuple[int, int]]:
        return [(0, size)]

    def __init__(self, parts: BoardParts) -> None:
        self.mmio = Bus("mmio")
        self.parts: dict[str, Device[Any]] = {}
        controls: dict[int, StartControl] = {}
        self._controllers: list[Controller] = []
        processors = []
        for index in range(parts.cpus):
            controller = Controller(parts.clock, self._controllers)
            self._controllers.append(controller)
            local = Bus(f"mmio-cpu{index}", parent=self.mmio)
            local.attach("controller", TIMER, SIZE, controller)
            self.parts[f"controller{index}"] = controller
            processors.append(ToyProcessor(index, local, controller, controls))
        self.processors = tuple(processors)
        self.slots: dict[str, Slot] = {}
        self._numbers = itertools.count(FIRST_FREE_IRQ)
        self._windows = MmioSlots(parts.memory, self.mmio, WINDOWS, STRIDE, self._take_line)
        self.serial = Serial(self.irq_line_of(SERIAL_IRQ), parts.serial)
        for name, base, device in (
            ("serial", SERIAL, self.serial),
            ("power", POWER, Power(parts.events.power_off, controls)),
        ):
            self.mmio.attach(name, base, 8 if name == "serial" else SIZE, device)
            self.parts[name] = device
        for name, virtio in parts.devices.items():
            self.add(name, virtio)

    def place(self, name: str, device: VirtioDevice[Any]) -> Slot:
        return self._windows.place(name, device)

    def _take_line(self) -> tuple[int, IrqLine]:
        number = next(self._numbers)
        return number, self.irq_line_of(number)

    def boot(self, *_: Any) -> list[Any]:
        raise GuestImageError("this board boots no kernels")

    def end_of_interrupt(self, number: int) -> None: ...

    def renew_generation(self, identifier: bytes) -> None: ...

    def repeat_generation(self) -> None: ...

    def irq_line(self) -> IrqLine:
        return self._take_line()[1]

    def irq_line_of(self, gsi: int) -> IrqLine:
        return IrqLine(lambda level: self._controllers[0].raise_irq(gsi) if level else None)
