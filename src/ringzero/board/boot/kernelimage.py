"""A kernel ready to be loaded, whatever file it came from."""

from __future__ import annotations

import struct
from pathlib import Path

from ringzero.core.memory import PAGE_SIZE
from ringzero.errors import GuestImageError
from ringzero.records import record
from ringzero.units import format_size

# boot.rst, "The Real-Mode Kernel Header": offsets in the file.
SETUP_SECTS = 0x1F1
INITRD_MAXIMUM = 0x22C
# The initrd must lie below this when the kernel does not say otherwise.
DEFAULT_INITRD_MAXIMUM = 0x7FFF_FFFF


@record
class Segment:
    """One piece of the kernel: `data` goes to physical `address`, zeros up to `size` bytes."""

    address: int
    data: memoryview
    size: int


@record
class KernelImage:
    """A kernel ready to be loaded.

    `kind` is "bzImage" or "vmlinux"; `entry` the physical address of the first
    instruction (64-bit mode, boot parameters in RSI); `setup_header` the bytes
    0x1F1 up to 0x268 of a bzImage, for the zero page (empty for a vmlinux);
    `command_line_size` the longest command line in bytes, without its NUL.
    """

    kind: str
    entry: int
    segments: tuple[Segment, ...]
    version: str
    setup_header: bytes
    command_line_size: int

    @property
    def lowest(self) -> int:
        """The lowest physical address used."""
        return min(segment.address for segment in self.segments)

    @property
    def highest(self) -> int:
        """The physical address after the last byte used, .bss included."""
        return max(segment.address + segment.size for segment in self.segments)

    @staticmethod
    def check_initrd(size: int, memory: int, path: Path) -> None:
        """Raise GuestImageError for an initrd, of `path`, that is larger than the memory."""
        if size > memory:
            raise GuestImageError(
                f"the initrd {path} of {format_size(size)} does not fit into "
                f"{format_size(memory)} of memory",
                hint="give the machine more memory (--memory) or a smaller initrd",
                path=path,
            )

    def check_fits(self, memory: int) -> None:
        """Raise GuestImageError when the kernel does not fit into `memory` bytes from 0."""
        if self.highest > memory:
            raise GuestImageError(
                f"the kernel needs memory up to {format_size(self.highest)}, "
                f"the machine has {format_size(memory)}",
                hint="give the machine more memory: --memory 256M",
            )

    def place_initrd(self, size: int, low_end: int) -> int:
        """Return the address for an initrd of `size` bytes: as high below `low_end` as it may be.

        Raises GuestImageError when it does not fit above the kernel.
        """
        highest = DEFAULT_INITRD_MAXIMUM
        if self.setup_header:
            (highest,) = struct.unpack_from("<I", self.setup_header, INITRD_MAXIMUM - SETUP_SECTS)
        top = min(low_end, (highest or DEFAULT_INITRD_MAXIMUM) + 1)
        address = (top - size) & -PAGE_SIZE
        if address < self.highest:
            raise GuestImageError(
                f"the initrd of {format_size(size)} does not fit: memory from "
                f"{format_size(self.highest)} to {format_size(top)} is free",
                hint="give the machine more memory (--memory) or a smaller initrd",
            )
        return address
