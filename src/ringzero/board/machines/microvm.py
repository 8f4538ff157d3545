"""The `microvm` board: direct boot, hardware-reduced ACPI, virtio over MMIO, no PCI."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from ringzero.board import microvm_map as memmap
from ringzero.board.contract import BOARDS, Board, BoardParts, Latch, Shadow
from ringzero.board.slots.contract import Slot
from ringzero.board.slots.mmio import MmioSlot, MmioSlots
from ringzero.board.x86 import X86Processor
from ringzero.core.bus import Bus, MsrBus
from ringzero.core.irq import IrqLine
from ringzero.devices.chips import serial
from ringzero.devices.chips.i8042 import I8042
from ringzero.devices.chips.power import RESET_VALUE, SLEEP_TYPE_OFF, Power
from ringzero.devices.chips.pvpanic import Pvpanic
from ringzero.devices.chips.rtc import Rtc
from ringzero.devices.chips.serial import Serial
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


@BOARDS.register("microvm")
class Microvm(Board):
    """Built once per machine; `serial` is its end for the host."""

    architecture = X86_64
    ram_layout = staticmethod(memmap.ram_layout)
    file_layout = staticmethod(memmap.file_layout)

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
        self._build_legacy(parts)
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
        # The clock's index; and that of a PCI bus, which is not there, but is looked for.
        yield Latch(True, memmap.RTC_BASE, 1)
        yield Latch(True, memmap.PCI_ADDRESS, 4)
        transmitter = memmap.COM1_BASE + serial.TRANSMIT
        identification = memmap.COM1_BASE + serial.IDENTIFICATION
        yield Latch(
            True,
            transmitter,
            1,
            prompt=True,
            then=self._serial.settle,
            changes=identification,
        )
        enable = memmap.COM1_BASE + serial.INTERRUPT_ENABLE
        hold = self._serial.hold_enabled
        off = serial.IER_TRANSMIT
        yield Latch(True, enable, 1, changes=identification, clears=off, hold=hold)

    def shadows(self) -> Iterator[Shadow]:
        for offset in serial.STATUS:
            yield Shadow(
                memmap.COM1_BASE + offset,
                partial(self._serial.shadow, offset),
                self._serial.identified if offset == serial.IDENTIFICATION else None,
            )

    def end_of_interrupt(self, number: int) -> None:
        for listener in self._bus.eoi_listeners:
            listener.end_of_interrupt(number)

    def _build_legacy(self, parts: BoardParts) -> None:
        events = parts.events
        self.serial = self._serial = Serial(self.irq_line_of(memmap.COM1_GSI), parts.serial)
        self.pio.attach(
            "serial", memmap.COM1_BASE, memmap.COM1_SIZE, self._serial, self._serial.write_all
        )
        self.parts["serial"] = self._serial
        self._add_port("rtc", memmap.RTC_BASE, memmap.RTC_SIZE, Rtc(parts.now))
        self._add_port("i8042", memmap.I8042_COMMAND, 1, I8042(events.reboot))
        self._add_port("pvpanic", memmap.PVPANIC_BASE, 1, Pvpanic(events.panic))
        power = Power(events.power_off, events.reboot)
        self._add_port("power", memmap.POWER_BASE, memmap.POWER_SIZE, power)
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

    def _add_port(self, name: str, base: int, size: int, device: Device[Any]) -> None:
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
            table_id=b"MICROVM ",
            cpus=len(self.processors),
            lapic_base=lapic.APIC_BASE_ADDRESS,
            ioapic_base=memmap.IOAPIC_BASE,
            power_port=memmap.POWER_BASE,
            reset_value=RESET_VALUE,
            sleep_type_off=SLEEP_TYPE_OFF,
            serial=(memmap.COM1_BASE, memmap.COM1_SIZE, memmap.COM1_GSI),
            rtc=(memmap.RTC_BASE, memmap.RTC_SIZE),
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
