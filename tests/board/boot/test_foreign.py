"""Files that are given as a kernel and are something else are called what they are."""

import bz2
import gzip
import lzma
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ringzero.board.boot.foreign import described
from ringzero.board.boot.kernel import parse_kernel
from ringzero.errors import GuestImageError
from tests.board.kernels import bzimage, elf


def elf32(machine=3, order="<"):
    ident = b"\x7fELF" + bytes([1, 1 if order == "<" else 2, 1]) + bytes(9)
    return ident + struct.pack(order + "HHI", 2, machine, 1) + bytes(200)


def at(offset, content, size=4096):
    return bytes(offset) + content + bytes(size - offset - len(content))


def pe(machine, subsystem, more=b""):
    head = b"MZ" + bytes(0x3A) + struct.pack("<I", 0x40)
    optional = bytes(68) + struct.pack("<H", subsystem) + bytes(100)
    return head + b"PE\0\0" + struct.pack("<H", machine) + bytes(18) + optional + more + bytes(400)


def multiboot(words=3, magic=0x1BADB002):
    rest = [0] * (words - 2)
    return at(64, struct.pack(f"<{words}I", magic, *rest, -magic & 0xFFFFFFFF))


ARM64_IMAGE = at(56, b"ARM\x64")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (elf32(), "32-bit ELF file for 32-bit x86"),
        (elf32(40), "32-bit Arm"),
        (elf32(20, ">"), "32-bit PowerPC"),
        (elf(machine=183), "64-bit ELF file for arm64"),
        (elf(machine=243), "RISC-V"),
        (elf32()[:52] + multiboot(), "a multiboot kernel"),
        (multiboot(), "a multiboot kernel"),
        (multiboot(4, 0xE85250D6), "a multiboot2 kernel"),
        (pe(0x8664, 10), "an EFI program for x86-64"),
        (pe(0xAA64, 10), "an EFI program for arm64"),
        (pe(0x8664, 3), "a Windows program"),
        (pe(0x8664, 10, b".linux\0\0"), "a unified kernel image"),
        (b"MZ" + bytes(2000), "a DOS program"),
        (ARM64_IMAGE, "Linux kernel for arm64"),
        (b"MZ" + ARM64_IMAGE[2:], "Linux kernel for arm64"),
        (at(56, b"RSC\x05"), "Linux kernel for RISC-V"),
        (at(0x24, struct.pack("<I", 0x016F2818)), "32-bit Arm (zImage)"),
        (at(0, struct.pack("<I", 0o413 | 100 << 16)), "an a.out program (ZMAGIC)"),
        (gzip.compress(ARM64_IMAGE), "compressed with gzip, of a Linux kernel for arm64"),
        (lzma.compress(elf32()), "compressed with xz, of a 32-bit ELF"),
        (bz2.compress(ARM64_IMAGE), "of a Linux kernel for arm64"),
        (zstandard.compress(ARM64_IMAGE), "of a Linux kernel for arm64"),
        (gzip.compress(b"nobody knows"), "compressed with gzip"),
        (gzip.compress(b"070701" + bytes(200)), "a cpio archive"),
        (b"QFI\xfb" + bytes(500), "a qcow2 disk image"),
        (b"\x27\x05\x19\x56" + bytes(500), "uImage"),
        (at(32769, b"CD001", 40000), "ISO 9660"),
        (at(510, b"\x55\xaa"), "boot sector"),
        (b"<!DOCTYPE html><html>" + bytes(100), "HTML page"),
        (b"!<arch>\ndebian-binary", "Debian package"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_is_named(data, words):
    with pytest.raises(GuestImageError) as caught:
        parse_kernel(data)
    assert words in caught.value.message
    assert "bzImage" in caught.value.hint


def test_boot_header_without_a_payload():
    """memtest86+ is a bzImage by its header, and has nothing to unpack."""
    data = bytearray(bzimage(b"x"))
    data[0x24C:0x250] = bytes(4)
    with pytest.raises(GuestImageError, match=r"no payload, as memtest86\+"):
        parse_kernel(bytes(data))


@given(st.binary(max_size=600))
def test_any_start_of_a_file_is_looked_at_without_a_fault(data):
    for magic in (b"", b"MZ", b"\x7fELF", b"\x1f\x8b", bytes(64)):
        described(magic + data)
