"""What the microvm boards have in common: direct boot, hardware-reduced ACPI, virtio over MMIO."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from ringzero.board import microvm_map as memmap
from ringzero.board.contract import Board, BoardParts, Latch, SerialPort
from ringzero.board.slots.contract import Slot
from ringzero.board.slots.mmio import MmioSlot, MmioSlots
from ringzero.board.x86 import X86Processor
from ringzero.core.bus import Bus, MsrBus
from ringzero.core.irq import IrqLine
from ringzero.devices.chips.power import RESET_VALUE, SLEEP_TYPE_OFF, Power
from ringzero.devices.chips.pvpanic import Pvpanic
from ringzero.devices.chips.vmclock import VmClock
from ringzero.devices.chips.vmgenid import VmGenerationId
from ringzero.devices.contract import Device
from ringzero.devices.interrupts import lapic
from ringzero.devices.interrupts.ioapic import IOAPIC_SIZE, SELECT, Ioapic
from ringzero.devices.interrupts.lapic import ApicBus, Lapic, MessageBus
from ringzero.devices.virtio.device import VirtioDevice
from ringzero.errors import DeviceError
from ringzero.isa.x86.architecture import X86_64
from ringzero.isa.x86.state import CpuState

if TYPE_CHECKING:
    from ringzero.board.boot.kernelimage import KernelImage
    from ringzero.board.boot.loading import Loading


class NoSerial:
    """The first serial port of a board that has none: it takes nothing, and says nothing."""

    on_room: Callable[[], None] | None = None

    def push(self, data: bytes) -> int:
        """Drop input."""
        return len(data)


class ReducedBoard(Board):
    """Interrupts, slots, power and what tells copies that they are some. No PCI.

    What else a PC has, a subclass adds in `build_legacy`, and tells in `plan`.
    """

    architecture = X86_64
    ram_layout = staticmethod(memmap.ram_layout)
    file_layout = staticmethod(memmap.file_layout)
    # The board's name in its ACPI tables, 8 bytes.
    table_id: ClassVar[bytes]
    # Where it has a serial port (port, size, interrupt) and a clock (port, size).
    serial_ports: ClassVar[tuple[int, int, int] | None] = None
    clock_ports: ClassVar[tuple[int, int] | None] = None

    def __init__(self, parts: BoardParts) -> None:
        self.memory = parts.memory
        self.mmio = Bus("mmio")
        self.pio: Bus = Bus("pio")
        self.parts: dict[str, Device[Any]] = {}
        self.slots: dict[str, Slot] = {}
        self._free_gsis = list(range(memmap.VIRTIO_FIRST_GSI, memmap.VIRTIO_LAST_GSI + 1))
        self._windows = MmioSlots(
            parts.memory, self.mmio, memmap.VIRTIO_BASE, memmap.VIRTIO_STRIDE, self._take_line
        )
        self._build_interrupts(parts)
        self.build_legacy(parts)
        self._build_power(parts)
        for name, device in parts.devices.items():
            self.add(name, device)

    def _build_interrupts(self, parts: BoardParts) -> None:
        self._bus: ApicBus | MessageBus
        if parts.messages is None:
            self._bus = ApicBus()
            self.processors = self._own_processors(parts, self._bus)
        else:
            self._bus = MessageBus(parts.messages)
            self.processors = tuple(
                X86Processor(index, self.mmio, self.pio, MsrBus(f"msr-cpu{index}"))
                for index in range(parts.cpus)
            )
        self.ioapic = Ioapic(self._bus)
        self.mmio.attach("ioapic", memmap.IOAPIC_BASE, IOAPIC_SIZE, self.ioapic)
        self.parts["ioapic"] = self.ioapic

    def _own_processors(self, parts: BoardParts, bus: ApicBus) -> tuple[X86Processor, ...]:
        # The engine may keep it, as it does local APICs.
        from ringzero.devices.chips import kvmclock

        clock = kvmclock.Kvmclock(
            parts.memory, parts.cpus, parts.clock, parts.counter_hz, parts.now
        )
        self.parts["kvmclock"] = clock
        processors = []
        for index in range(parts.cpus):
            apic = Lapic(index, bus, parts.clock, parts.counter_hz)
            local = Bus(f"mmio-cpu{index}", parent=self.mmio)
            local.attach("lapic", lapic.APIC_BASE_ADDRESS, lapic.APIC_SIZE, apic)
            msrs = MsrBus(f"msr-cpu{index}")
            msrs.attach("lapic", lapic.MSRS, apic)
            msrs.attach("kvmclock", kvmclock.MSRS, clock.port(index))
            processors.append(X86Processor(index, local, self.pio, msrs, apic))
            self.parts[f"lapic{index}"] = apic
        return tuple(processors)

    def latches(self) -> Iterator[Latch]:
        yield Latch(False, memmap.IOAPIC_BASE + SELECT, 4)
        # The index of a PCI bus, which is not there, but is looked for.
        yield Latch(True, memmap.PCI_ADDRESS, 4)

    def end_of_interrupt(self, number: int) -> None:
        for listener in self._bus.eoi_listeners:
            listener.end_of_interrupt(number)

    def build_legacy(self, parts: BoardParts) -> None:
        """Add the parts at ports that this board has besides; sets `serial`."""
        self.serial: SerialPort = NoSerial()

    def _build_power(self, parts: BoardParts) -> None:
        events = parts.events
        self.add_port("pvpanic", memmap.PVPANIC_BASE, 1, Pvpanic(events.panic))
        power = Power(events.power_off, events.reboot)
        self.add_port("power", memmap.POWER_BASE, memmap.POWER_SIZE, power)
        self._generation = VmGenerationId(
            parts.memory, memmap.GENERATION_ID, self.irq_line_of(memmap.EVENT_GSI)
        )
        self.parts["vmgenid"] = self._generation
        self._wall = VmClock(
            parts.memory,
            memmap.CLOCK_PAGE,
            self.irq_line_of(memmap.EVENT_GSI),
            parts.clock,
            parts.counter_hz,
            parts.now,
        )
        self.parts["vmclock"] = self._wall

    def add_port(self, name: str, base: int, size: int, device: Device[Any]) -> None:
        """Attach a part of the board's own at a port."""
        self.pio.attach(name, base, size, device)
        self.parts[name] = device

    def renew_generation(self, identifier: bytes) -> None:
        self._generation.renew(identifier)
        self._wall.renew()

    def repeat_generation(self) -> None:
        self._generation.repeat()

    def press_power_button(self) -> bool:
        self.irq_line_of(memmap.BUTTON_GSI).pulse()
        return True

    def irq_line(self) -> IrqLine:
        return self._take_line()[1]

    def irq_line_of(self, gsi: int) -> IrqLine:
        return self.ioapic.line(gsi)

    def _take_line(self) -> tuple[int, IrqLine]:
        if not self._free_gsis:
            raise DeviceError("all interrupt lines are taken", hint="attach fewer devices")
        gsi = self._free_gsis.pop(0)
        return gsi, self.irq_line_of(gsi)

    def place(self, name: str, device: VirtioDevice[Any]) -> MmioSlot:
        """Give `device` a window, an interrupt and an entry in the ACPI tables."""
        return self._windows.place(name, device)

    def boot(
        self,
        kernel: KernelImage,
        command_line: str,
        initrd: bytes | memoryview,
        loading: Loading | None = None,
    ) -> list[CpuState]:
        # Not of those that go on from a saved state.
        from ringzero.board.boot.microvm import LINUX64
        from ringzero.board.firmware import acpi

        plan = acpi.AcpiPlan(
            table_id=self.table_id,
            cpus=len(self.processors),
            lapic_base=lapic.APIC_BASE_ADDRESS,
            ioapic_base=memmap.IOAPIC_BASE,
            power_port=memmap.POWER_BASE,
            reset_value=RESET_VALUE,
            sleep_type_off=SLEEP_TYPE_OFF,
            serial=self.serial_ports,
            rtc=self.clock_ports,
            panic_port=memmap.PVPANIC_BASE,
            generation_id=memmap.GENERATION_ID,
            clock_page=memmap.CLOCK_PAGE,
            event_gsi=memmap.EVENT_GSI,
            button_gsi=memmap.BUTTON_GSI,
            windows=[(slot.base, slot.size, slot.irq) for slot in self._windows.used],
        )
        rsdp, tables = acpi.build(plan, memmap.ACPI_TABLES, memmap.ACPI_TABLES_END)
        self.memory.write(memmap.ACPI_TABLES, tables)
        first = LINUX64.load(self.memory, kernel, command_line, initrd, rsdp, loading)
        waiting = X86_64.with_offline(CpuState(), True)
        return [first] + [waiting] * (len(self.processors) - 1)
