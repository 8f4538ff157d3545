"""The 64-bit boot protocol, field by field (Documentation/arch/x86/boot.rst, zero-page.rst)."""

import struct
from itertools import pairwise

import pytest

from ringzero.board import microvm_map as memmap
from ringzero.board.boot.kernelimage import KernelImage, Segment
from ringzero.board.boot.loading import Loading
from ringzero.board.boot.microvm import LINUX64
from ringzero.core.memory import GuestMemory
from ringzero.errors import GuestAddressError, GuestImageError, InvalidValueError
from ringzero.units import GIB, MIB

ENTRY = 0x1000000


def kernel(size=MIB, bss=4096, header=b"", limit=2047):
    segment = Segment(ENTRY, memoryview(b"K" * size), size + bss)
    return KernelImage("vmlinux", ENTRY, (segment,), "6.1", header, limit)


def load(memory, image=None, line="console=ttyS0", initrd=b"", rsdp=0xE0000):
    return LINUX64.load(memory, image or kernel(), line, initrd, rsdp)


def test_a_kernel_that_is_already_being_copied():
    plain, early = (GuestMemory(memmap.ram_layout(64 * MIB)) for _ in range(2))
    initrd = b"I" * 70000
    found = load(plain, initrd=initrd)
    image = kernel()
    loading = Loading(early, image, initrd)
    assert LINUX64.load(early, image, "console=ttyS0", initrd, 0xE0000, loading) == found
    assert early.host.view == plain.host.view


def test_a_copy_that_fails_is_told_to_whoever_waits():
    image = kernel(size=3 * MIB)
    loading = Loading(GuestMemory(memmap.ram_layout(18 * MIB)), image)
    loading.join()
    with pytest.raises(GuestAddressError):
        loading.wait()


def walk(memory, cr3, address):
    """Translate by the page tables (SDM vol. 3A, 4.5), large pages included."""
    table = cr3
    for shift in (39, 30, 21):
        entry = memory.read_int(table + 8 * (address >> shift & 511), 8)
        assert entry & 3 == 3, hex(address)
        if entry & 0x80:
            return (entry & ~0xFFF) + (address & ((1 << shift) - 1))
        table = entry & ~0xFFF
    raise AssertionError


def test_state_and_structures():
    memory = GuestMemory(memmap.ram_layout(64 * MIB))
    memory.write(ENTRY + MIB, b"dirty bss")
    state = load(memory, initrd=b"I" * 5000)
    assert state.rip == ENTRY and state.gpr[6] == memmap.BOOT_PARAMS
    assert state.cs.selector == 0x10 and state.ds.selector == state.ss.selector == 0x18
    assert state.rflags & 0x200 == 0, "interrupts are off"
    assert state.cr0 & 0x80000001 == 0x80000001 and state.efer & 0x500 == 0x500
    assert state.cr4 & 0x20
    for address in (0, ENTRY, 0xFEE00000, 4 * GIB - 1):
        assert walk(memory, state.cr3, address) == address
    gdt = memory.read(state.gdtr.base, state.gdtr.limit + 1)
    code, data = struct.unpack_from("<QQ", gdt, 0x10)
    assert code >> 40 & 0xFF == 0x9B and code >> 53 & 1 and not code >> 54 & 1
    assert data >> 40 & 0xFF == 0x93

    page = memory.read(memmap.BOOT_PARAMS, 4096)
    assert page[0x1FE:0x200] == b"\x55\xaa" and page[0x202:0x206] == b"HdrS"
    assert page[0x210] == 0xFF and page[0x211] & 1
    assert struct.unpack_from("<Q", page, 0x70)[0] == 0xE0000
    pointer = struct.unpack_from("<I", page, 0x228)[0]
    assert memory.read(pointer, 14) == b"console=ttyS0\0"
    where, size = struct.unpack_from("<II", page, 0x218)
    assert size == 5000 and memory.read(where, size) == b"I" * 5000
    assert where % 4096 == 0 and where + size <= 64 * MIB
    assert memory.read(ENTRY, MIB) == b"K" * MIB
    assert memory.read(ENTRY + MIB, 4096) == bytes(4096)


def entries(memory):
    page = memory.read(memmap.BOOT_PARAMS, 4096)
    return [struct.unpack_from("<QQI", page, 0x2D0 + 20 * n) for n in range(page[0x1E8])]


@pytest.mark.parametrize("size", [64 * MIB, 3 * GIB, 5 * GIB])
def test_memory_map(size):
    memory = GuestMemory(memmap.ram_layout(size))
    load(memory)
    found = entries(memory)
    ram = [(base, length) for base, length, kind in found if kind == 1]
    assert sum(length for _, length in ram) == size - (MIB - memmap.LOW_MEMORY_END)
    for base, length in ram:
        assert memory.is_ram(base, length)
        assert base + length <= 3 * GIB or base >= 4 * GIB
    assert [kind for base, _, kind in found if base == memmap.ACPI_TABLES] == [3]
    for (base, length, _), (following, _, _) in pairwise(found):
        assert base + length <= following


def test_setup_header_is_kept():
    header = bytearray(0x268 - 0x1F1)
    header[0x236 - 0x1F1] = 0x7F
    struct.pack_into("<I", header, 0x22C - 0x1F1, 20 * MIB - 1)
    memory = GuestMemory(memmap.ram_layout(64 * MIB))
    load(memory, kernel(header=bytes(header)), initrd=b"x" * 4096)
    page = memory.read(memmap.BOOT_PARAMS, 4096)
    assert page[0x236] == 0x7F
    assert struct.unpack_from("<I", page, 0x218)[0] + 4096 == 20 * MIB


@pytest.mark.parametrize(
    ("size", "options", "words"),
    [
        (16 * MIB, {}, "needs memory"),
        (32 * MIB, {"initrd": bytes(16 * MIB)}, "initrd"),
        (64 * MIB, {"line": "x" * 2048}, "command line"),
        (64 * MIB, {"image": KernelImage("vmlinux", 0x8000, (
            Segment(0x8000, memoryview(b"x"), 1),), "", b"", 100)}, "1 MiB"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(size, options, words):
    memory = GuestMemory(memmap.ram_layout(size))
    with pytest.raises(GuestImageError, match=words) as caught:
        load(memory, **options)
    assert caught.value.hint


@pytest.mark.parametrize("size", [0, 4096, 8 * MIB + 1])
def test_senseless_memory(size):
    with pytest.raises(InvalidValueError):
        memmap.ram_layout(size)
