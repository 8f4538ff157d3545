"""The 64-bit boot protocol of x86 Linux (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

Kernel, initrd, command line and `boot_params` are put into guest memory, with
an identity mapping and flat segments, and the vCPU starts at the kernel's
64-bit entry point with RSI at `boot_params`.
"""

from __future__ import annotations

import os
import struct

from ringzero.board.boot.contract import BootProtocol
from ringzero.board.boot.kernelimage import DEFAULT_INITRD_MAXIMUM, INITRD_MAXIMUM, KernelImage
from ringzero.board.boot.loading import Loading
from ringzero.core.memory import PAGE_SIZE, GuestMemory
from ringzero.errors import GuestImageError
from ringzero.isa.x86.state import (
    CR0_ET,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    CpuState,
    Table,
    flat_segment,
)
from ringzero.records import record
from ringzero.units import GIB, MIB, format_size

# struct boot_params (Documentation/arch/x86/zero-page.rst) and, from 0x1F1 on, the setup header.
ZERO_PAGE_SIZE = 4096
ACPI_RSDP = 0x070
E820_COUNT = 0x1E8
SETUP_HEADER = 0x1F1
BOOT_FLAG = 0x1FE
HEADER_MAGIC = 0x202
PROTOCOL = 0x206
TYPE_OF_LOADER = 0x210
LOAD_FLAGS = 0x211
RAMDISK_IMAGE, RAMDISK_SIZE = 0x218, 0x21C
COMMAND_LINE_POINTER = 0x228
KERNEL_ALIGNMENT = 0x230
COMMAND_LINE_SIZE = 0x238
E820_TABLE = 0x2D0
E820_ENTRY = struct.Struct("<QQI")
E820_RAM, E820_RESERVED, E820_ACPI = 1, 2, 3
# "Undefined" boot loader, which is any without a registered number.
LOADER_UNDEFINED = 0xFF
LOADED_HIGH = 1
# What a vmlinux without a setup header is told: 2.12 has all fields that matter here.
PROTOCOL_2_12 = 0x020C

# Selectors that the protocol prescribes: __BOOT_CS and __BOOT_DS.
BOOT_CS, BOOT_DS = 0x10, 0x18
# Descriptors of those: flat, 4 GiB, 64-bit code and data.
GDT = struct.pack("<4Q", 0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
# Real-mode code at the reset vector: mov al, 0xFE; out 0x64, al; hlt; jmp -3. On
# hardware-reduced ACPI without EFI, Linux reboots by jumping here (reboot=bios).
RESET_CODE = bytes.fromhex("b0fee664f4ebfd")
PRESENT_WRITABLE = 3
LARGE_PAGE = 0x80
LARGE_PAGE_SIZE = 2 * MIB


@record
class E820Entry:
    """One range of the memory map that Linux gets."""

    base: int
    size: int
    kind: int


@record
class Layout:
    """Where a board has room for the protocol's structures, by guest-physical addresses.

    `low` is the memory map below `high_memory`, where kernels and RAM begin. `reset_stub` is
    the reset vector of real mode, `stack` the first stack's top.
    """

    gdt: int
    idt: int
    boot_params: int
    stack: int
    page_tables: int
    command_line: int
    reset_stub: int
    high_memory: int
    low: tuple[E820Entry, ...]


class Linux64(BootProtocol[CpuState]):
    """The protocol on a board with this layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def memory_map(self, memory: GuestMemory) -> list[E820Entry]:
        """Return the e820 map that Linux gets."""
        entries = list(self.layout.low)
        for region in memory.regions:
            base = max(region.base, self.layout.high_memory)
            entries.append(E820Entry(base, region.end - base, E820_RAM))
        return entries

    def load(
        self,
        memory: GuestMemory,
        kernel: KernelImage,
        command_line: str,
        initrd: bytes | memoryview,
        tables: int,
        loading: Loading | None = None,
    ) -> CpuState:
        layout = self.layout
        low_end = memory.regions[0].end
        kernel.check_fits(low_end)
        if kernel.lowest < layout.high_memory:
            raise GuestImageError(
                f"the kernel wants to lie at {kernel.lowest:#x}, "
                f"below {format_size(layout.high_memory)}",
                hint="give a kernel that is linked there or above, as Linux is",
            )
        line = os.fsencode(command_line)
        if len(line) > kernel.command_line_size:
            raise GuestImageError(
                f"the kernel command line has {len(line)} bytes, "
                f"this kernel takes {kernel.command_line_size}",
                hint="shorten it (--append)",
            )
        zero_page = _zero_page(kernel)
        if loading is None:
            for segment in kernel.segments:
                memory.write(segment.address, segment.data)
                memory.clear(segment.address + len(segment.data), segment.size - len(segment.data))
        if initrd:
            address = kernel.place_initrd(len(initrd), low_end)
            if loading is None:
                memory.write(address, initrd)
            struct.pack_into("<II", zero_page, RAMDISK_IMAGE, address, len(initrd))
        memory.write(layout.command_line, line + b"\0")
        struct.pack_into("<I", zero_page, COMMAND_LINE_POINTER, layout.command_line)
        struct.pack_into("<Q", zero_page, ACPI_RSDP, tables)
        entries = self.memory_map(memory)
        zero_page[E820_COUNT] = len(entries)
        for number, entry in enumerate(entries):
            offset = E820_TABLE + E820_ENTRY.size * number
            E820_ENTRY.pack_into(zero_page, offset, entry.base, entry.size, entry.kind)
        memory.write(layout.boot_params, zero_page)
        memory.write(layout.gdt, GDT)
        memory.write(layout.reset_stub, RESET_CODE)
        state = _enter(memory, kernel.entry, layout)
        if loading is not None:
            loading.wait()
        return state


def _zero_page(kernel: KernelImage) -> bytearray:
    page = bytearray(ZERO_PAGE_SIZE)
    if kernel.setup_header:
        page[SETUP_HEADER : SETUP_HEADER + len(kernel.setup_header)] = kernel.setup_header
    else:
        struct.pack_into("<H", page, BOOT_FLAG, 0xAA55)
        page[HEADER_MAGIC : HEADER_MAGIC + 4] = b"HdrS"
        struct.pack_into("<H", page, PROTOCOL, PROTOCOL_2_12)
        struct.pack_into("<I", page, KERNEL_ALIGNMENT, LARGE_PAGE_SIZE)
        struct.pack_into("<I", page, COMMAND_LINE_SIZE, kernel.command_line_size)
        struct.pack_into("<I", page, INITRD_MAXIMUM, DEFAULT_INITRD_MAXIMUM)
    page[TYPE_OF_LOADER] = LOADER_UNDEFINED
    page[LOAD_FLAGS] |= LOADED_HIGH
    return page


def _enter(memory: GuestMemory, entry: int, layout: Layout) -> CpuState:
    """Write page tables that map the first 4 GiB to themselves; return the CPU at `entry`."""
    pml4, pdpt, directory = (layout.page_tables + PAGE_SIZE * n for n in range(3))
    memory.write(pml4, struct.pack("<Q", pdpt | PRESENT_WRITABLE).ljust(PAGE_SIZE, b"\0"))
    gigabytes = 4
    pointers = [directory + PAGE_SIZE * n | PRESENT_WRITABLE for n in range(gigabytes)]
    memory.write(pdpt, struct.pack(f"<{gigabytes}Q", *pointers).ljust(PAGE_SIZE, b"\0"))
    pages = range(PRESENT_WRITABLE | LARGE_PAGE, gigabytes * GIB, LARGE_PAGE_SIZE)
    memory.write(directory, struct.pack(f"<{len(pages)}Q", *pages))
    data = flat_segment(BOOT_DS, code=False)
    state = CpuState(
        rip=entry,
        cs=flat_segment(BOOT_CS, code=True),
        ds=data,
        es=data,
        fs=data,
        gs=data,
        ss=data,
        gdtr=Table(layout.gdt, len(GDT) - 1),
        # Interrupts are off until the kernel has a table of its own.
        idtr=Table(layout.idt, 0),
        cr0=CR0_PE | CR0_ET | CR0_NE | CR0_PG,
        cr3=pml4,
        cr4=CR4_PAE,
        efer=EFER_LME | EFER_LMA,
    )
    return state.with_gpr(rsi=layout.boot_params, rsp=layout.stack)
