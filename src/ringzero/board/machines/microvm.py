"""The `microvm` board: direct boot, hardware-reduced ACPI, virtio over MMIO, no PCI."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ringzero.board import microvm_map as memmap
from ringzero.board.boot import linux64 as boot
from ringzero.board.boot.kernel import KernelImage
from ringzero.board.boot.loading import Loading
from ringzero.board.contract import BOARDS, Board, BoardParts, Latch
from ringzero.board.firmware import acpi
from ringzero.board.x86 import X86Processor
from ringzero.core.bus import Bus, MsrBus
from ringzero.core.irq import IrqLine
from ringzero.devices.chips.i8042 import I8042
from ringzero.devices.chips.power import RESET_VALUE, SLEEP_TYPE_OFF, Power
from ringzero.devices.chips.pvpanic import Pvpanic
from ringzero.devices.chips.rtc import Rtc
from ringzero.devices.chips.serial import Serial
from ringzero.devices.chips.vmgenid import VmGenerationId
from ringzero.devices.contract import Device
from ringzero.devices.interrupts import lapic
from ringzero.devices.interrupts.ioapic import IOAPIC_SIZE, SELECT, Ioapic
from ringzero.devices.interrupts.lapic import ApicBus, Lapic, MessageBus
from ringzero.devices.virtio.device import VirtioDevice
from ringzero.devices.virtio.kinds.console import Console
from ringzero.devices.virtio.kinds.rng import Rng
from ringzero.devices.virtio.mmio import WINDOW_SIZE, VirtioMmio
from ringzero.errors import DeviceError
from ringzero.isa.x86.architecture import X86_64
from ringzero.isa.x86.state import CpuState

if TYPE_CHECKING:
    from ringzero.devices.virtio.kinds.block import BlockBackend


@BOARDS.register("microvm")
class Microvm(Board):
    """Built once per machine; `console` and `serial` are its ends for the host."""

    architecture = X86_64
    ram_layout = staticmethod(memmap.ram_layout)

    def __init__(self, parts: BoardParts) -> None:
        self.memory = parts.memory
        self.mmio = Bus("mmio")
        self.pio: Bus = Bus("pio")
        self.parts: dict[str, Device[Any]] = {}
        self._slots: list[acpi.MmioSlot] = []
        self._free_gsis = list(range(memmap.VIRTIO_FIRST_GSI, memmap.VIRTIO_LAST_GSI + 1))
        self._build_interrupts(parts)
        self._build_legacy(parts)
        self.console: Console | None = None
        if parts.ports:
            self.console = Console(list(parts.ports), parts.columns, parts.rows)
            self.add_virtio("console", self.console)
        self.add_virtio("rng", Rng())
        if parts.disks:
            self._add_disks(parts.disks)
        for name, device in parts.devices.items():
            self.add_virtio(name, device)

    def _add_disks(self, disks: Sequence[BlockBackend]) -> None:
        from ringzero.devices.virtio.kinds.block import Block

        for number, disk in enumerate(disks):
            self.add_virtio(f"disk{number}", Block(disk, identity=f"disk{number}"))

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

    def end_of_interrupt(self, number: int) -> None:
        for listener in self._bus.eoi_listeners:
            listener.end_of_interrupt(number)

    def _build_legacy(self, parts: BoardParts) -> None:
        events = parts.events
        self.serial = Serial(self.irq_line_of(memmap.COM1_GSI), parts.serial)
        self._add_port("serial", memmap.COM1_BASE, memmap.COM1_SIZE, self.serial)
        self._add_port("rtc", memmap.RTC_BASE, memmap.RTC_SIZE, Rtc(parts.now))
        self._add_port("i8042", memmap.I8042_COMMAND, 1, I8042(events.reboot))
        self._add_port("pvpanic", memmap.PVPANIC_BASE, 1, Pvpanic(events.panic))
        power = Power(events.power_off, events.reboot)
        self._add_port("power", memmap.POWER_BASE, memmap.POWER_SIZE, power)
        self._generation = VmGenerationId(
            parts.memory, memmap.GENERATION_ID, self.irq_line_of(memmap.EVENT_GSI)
        )
        self.parts["vmgenid"] = self._generation

    def _add_port(self, name: str, base: int, size: int, device: Device[Any]) -> None:
        self.pio.attach(name, base, size, device)
        self.parts[name] = device

    def resize_console(self, columns: int, rows: int) -> None:
        if self.console is not None:
            self.console.resize(columns, rows)

    def renew_generation(self, identifier: bytes) -> None:
        self._generation.renew(identifier)

    def irq_line(self) -> IrqLine:
        return self.irq_line_of(self._take_gsi())

    def irq_line_of(self, gsi: int) -> IrqLine:
        return self.ioapic.line(gsi)

    def _take_gsi(self) -> int:
        if not self._free_gsis:
            raise DeviceError("all interrupt lines are taken", hint="attach fewer devices")
        return self._free_gsis.pop(0)

    def add_virtio(self, name: str, device: VirtioDevice[Any]) -> VirtioMmio:
        """Give `device` a window, an interrupt and an entry in the ACPI tables.

        Raises DeviceError when there is no interrupt line left, or the name is taken.
        """
        if name in self.parts:
            raise DeviceError(f"two devices are called {name!r}")
        gsi = self._take_gsi()
        base = memmap.VIRTIO_BASE + len(self._slots) * memmap.VIRTIO_STRIDE
        transport = VirtioMmio(self.memory, self.irq_line_of(gsi), device)
        self.mmio.attach(name, base, WINDOW_SIZE, transport)
        self._slots.append(acpi.MmioSlot(base, WINDOW_SIZE, gsi))
        self.parts[name] = transport
        return transport

    def boot(
        self,
        kernel: KernelImage,
        command_line: str,
        initrd: bytes | memoryview,
        loading: Loading | None = None,
    ) -> list[CpuState]:
        plan = acpi.AcpiPlan(
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
            event_gsi=memmap.EVENT_GSI,
            slots=self._slots,
        )
        rsdp, tables = acpi.build(plan, memmap.ACPI_TABLES, memmap.ACPI_TABLES_END)
        self.memory.write(memmap.ACPI_TABLES, tables)
        first = boot.load(self.memory, kernel, command_line, initrd, rsdp, loading)
        waiting = X86_64.with_offline(CpuState(), True)
        return [first] + [waiting] * (len(self.processors) - 1)
