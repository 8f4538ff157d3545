"""The `microvm` board's addresses: RAM, the hole below 4 GiB, devices, boot structures."""

from __future__ import annotations

from collections.abc import Sequence

from ringzero.core.memory import PAGE_SIZE
from ringzero.errors import InvalidValueError
from ringzero.units import GIB, MIB, format_size

# RAM ends here and goes on at 4 GiB: 1 GiB for devices, as PCs have it.
HOLE_START = 3 * GIB
HOLE_END = 4 * GIB

# virtio over MMIO: one page each, so that an engine can map or trap each alone.
VIRTIO_BASE = 0xD000_0000
VIRTIO_STRIDE = PAGE_SIZE
# Devices of the user's own, by default.
CUSTOM_BASE = 0xD100_0000
IOAPIC_BASE = 0xFEC0_0000

# Ports.
COM1_BASE, COM1_SIZE = 0x3F8, 8
RTC_BASE, RTC_SIZE = 0x70, 2
I8042_COMMAND = 0x64
# CONFIG_ADDRESS of PCI's first configuration mechanism.
PCI_ADDRESS = 0xCF8
# Where QEMU has pvpanic; the driver reads it from ACPI.
PVPANIC_BASE = 0x505
POWER_BASE, POWER_SIZE = 0x600, 3

# Interrupt lines (global system interrupts = I/O APIC pins).
COM1_GSI = 4
# ACPI events; a pin that the PC's second serial port would have.
EVENT_GSI = 3
# The power button; a pin of the PC's keyboard, which is not there. (Linux has none with pin 2.)
BUTTON_GSI = 1
# Pins 0-15 are ISA's by habit; drivers treat those above as shareable and free.
VIRTIO_FIRST_GSI, VIRTIO_LAST_GSI = 5, 23

# Below 1 MiB: where the boot structures lie (all free again once Linux is up).
GDT_ADDRESS = 0x500
IDT_ADDRESS = 0x520
BOOT_PARAMS = 0x7000
STACK_TOP = 0x8FF0
PAGE_TABLES = 0x9000
COMMAND_LINE = 0x20000
# The end of usable low memory: where a PC's extended BIOS data area begins.
LOW_MEMORY_END = 0x9FC00
# The BIOS area: tables first; at its very end, where a PC's BIOS begins, the reset stub.
ACPI_TABLES = 0xE0000
RESET_STUB = 0xFFFF0
# A page of its own below that, as the paper on generation identifiers asks for; it lies in
# what the memory map calls ACPI's, so that no system takes it for its own.
GENERATION_ID = 0xFE000
# Another for the clock's; it is as large as a page of the guest's.
CLOCK_PAGE = 0xFD000
ACPI_TABLES_END = CLOCK_PAGE
HIGH_MEMORY = 0x100000

# Less than this holds no kernel and no boot structures.
MINIMUM_MEMORY = 4 * MIB
# Linux takes memory in sections of this size, and kernels before 5.3 no part of one.
FILE_ALIGNMENT = 128 * MIB


def ram_layout(size: int) -> list[tuple[int, int]]:
    """Return the (base, size) regions for `size` bytes of RAM; raises InvalidValueError."""
    if size < MINIMUM_MEMORY or size % PAGE_SIZE:
        raise InvalidValueError(
            f"a microvm cannot have {format_size(size)} of memory",
            hint=f"give at least {format_size(MINIMUM_MEMORY)}, in whole pages of 4 KiB",
        )
    if size <= HOLE_START:
        return [(0, size)]
    return [(0, HOLE_START), (HOLE_END, size - HOLE_START)]


def file_layout(size: int, files: Sequence[int]) -> list[tuple[int, int]]:
    """Return the (base, size) of files of such sizes beside `size` bytes of RAM."""
    base = max(region + length for region, length in ram_layout(size))
    found = []
    for length in files:
        base = max(HOLE_END, -(-base // FILE_ALIGNMENT) * FILE_ALIGNMENT)
        found.append((base, length))
        base += length
    return found
