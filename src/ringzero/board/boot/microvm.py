"""What a Linux kernel finds in a microvm's low memory; loaded by machines that boot."""

from __future__ import annotations

from ringzero.board import microvm_map as memmap
from ringzero.board.boot.linux64 import (
    E820_ACPI,
    E820_RAM,
    E820_RESERVED,
    E820Entry,
    Layout,
    Linux64,
)

# Where a PC has free memory below 1 MiB; its BIOS area is told as ACPI's, but for what lies there
# for good: a system may take ACPI's for its own once it has read the tables.
LINUX64 = Linux64(
    Layout(
        gdt=memmap.GDT_ADDRESS,
        idt=memmap.IDT_ADDRESS,
        boot_params=memmap.BOOT_PARAMS,
        stack=memmap.STACK_TOP,
        page_tables=memmap.PAGE_TABLES,
        command_line=memmap.COMMAND_LINE,
        reset_stub=memmap.RESET_STUB,
        high_memory=memmap.HIGH_MEMORY,
        low=(
            E820Entry(0, memmap.LOW_MEMORY_END, E820_RAM),
            E820Entry(memmap.ACPI_TABLES, memmap.ACPI_TABLES_END - memmap.ACPI_TABLES, E820_ACPI),
            E820Entry(
                memmap.ACPI_TABLES_END,
                memmap.HIGH_MEMORY - memmap.ACPI_TABLES_END,
                E820_RESERVED,
            ),
        ),
    )
)
