"""Names files that are given as a kernel and are something else, by their first bytes.

Signatures are those of the formats' own manuals, named beside each.
"""

from __future__ import annotations

import struct

# e_machine of ELF (System V ABI, gABI, "Machine").
_ELF_MACHINES = {
    2: "SPARC", 3: "32-bit x86", 8: "MIPS", 20: "32-bit PowerPC", 21: "PowerPC", 22: "S390",
    40: "32-bit Arm", 42: "SuperH", 43: "SPARC V9", 50: "Itanium", 62: "x86-64", 183: "arm64",
    243: "RISC-V", 258: "LoongArch",
}  # fmt: skip
# Machine of a PE file (PE Format, "Machine Types").
_PE_MACHINES = {
    0x14C: "32-bit x86", 0x1C0: "32-bit Arm", 0x1C4: "32-bit Arm", 0x5032: "32-bit RISC-V",
    0x5064: "RISC-V", 0x6264: "LoongArch", 0x8664: "x86-64", 0xAA64: "arm64", 0xEBC: "EFI bytecode",
}  # fmt: skip
# a.out.h: OMAGIC, NMAGIC, ZMAGIC, QMAGIC in the low 16 bits of the first word.
_AOUT = {0o407: "OMAGIC", 0o410: "NMAGIC", 0o413: "ZMAGIC", 0o314: "QMAGIC"}
# Of a.out's machine types, those of Linux and BSD on 386 (M_386, MID_I386), and none.
_AOUT_MACHINES = (0, 100, 134)
_AOUT_HEADER = 32
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\x27\x05\x19\x56", "a U-Boot image (uImage)"),
    (b"\xd0\x0d\xfe\xed", "a flattened device tree or FIT image"),
    (b"ANDROID!", "an Android boot image"),
    (b"070701", "a cpio archive: an initrd, perhaps"),
    (b"070702", "a cpio archive: an initrd, perhaps"),
    (b"070707", "a cpio archive: an initrd, perhaps"),
    (b"!<arch>\n", "an archive of ar: a Debian package, perhaps"),
    (b"\xed\xab\xee\xdb", "an RPM package"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"hsqs", "a squashfs file system"),
    (b"QFI\xfb", "a qcow2 disk image: --disk takes it"),
    (b"KDMV", "a VMDK disk image: --disk takes it"),
    (b"conectix", "a VHD disk image: --disk takes it"),
    (b"vhdxfile", "a VHDX disk image: --disk takes it"),
    (b"\xfe\xed\xfa\xce", "a Mach-O file"),
    (b"\xcf\xfa\xed\xfe", "a Mach-O file"),
    (b"\xca\xfe\xba\xbe", "a universal Mach-O or Java class file"),
    (b"#!", "a script"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<!DOCTYPE", "an HTML page: the download has failed, perhaps"),
    (b"<html", "an HTML page: the download has failed, perhaps"),
)
_COMPRESSED: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"\x5d\0\0", "lzma"), (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x02\x21\x4c\x18", "lz4"), (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x89LZO", "lzop"),
)  # fmt: skip
# Linux' boot headers of other architectures: Documentation/arch/arm64/booting.rst (magic at 56),
# riscv/boot-image-header.rst (magic2 at 56), and 32-bit Arm's zImage (magic at 0x24).
_ARM64, _RISCV, _MAGIC2 = b"ARM\x64", b"RSC\x05", 56
_ZIMAGE, _ZIMAGE_AT = 0x016F2818, 0x24
# multiboot.html 3.1 and multiboot2: a magic within the first 8 and 32 KiB, and a sum of zero.
_MULTIBOOT, _MULTIBOOT_WITHIN = 0x1BADB002, 8192
_MULTIBOOT2, _MULTIBOOT2_WITHIN = 0xE85250D6, 32768
_ISO9660, _ISO9660_AT = b"CD001", 32769
_BOOT_SECTOR, _BOOT_SECTOR_AT = b"\x55\xaa", 510


def described(data: bytes) -> str | None:
    """Return what the content of a file is, in some words; None where nobody knows."""
    for magic, name in _STARTS:
        if data.startswith(magic):
            return name
    boot = multiboot(data)
    if data.startswith(b"\x7fELF"):
        what = elf_kind(data)
        return f"{what} with a {boot} header" if boot else what
    if data[_MAGIC2 : _MAGIC2 + 4] == _ARM64:
        return "a Linux kernel for arm64 (Image)"
    if data[_MAGIC2 : _MAGIC2 + 4] == _RISCV:
        return "a Linux kernel for RISC-V (Image)"
    if len(data) > _ZIMAGE_AT + 4 and _word(data, _ZIMAGE_AT) == _ZIMAGE:
        return "a Linux kernel for 32-bit Arm (zImage)"
    if data.startswith(b"MZ"):
        return _pe(data)
    if boot:
        return f"a {boot} kernel"
    for magic, name in _COMPRESSED:
        if data.startswith(magic):
            inside = _inside(data, name)
            return f"a file compressed with {name}" + (f", of {inside}" if inside else "")
    kind = _AOUT.get(_word(data, 0) & 0xFFFF) if len(data) >= _AOUT_HEADER else None
    if kind is not None and _word(data, 0) >> 16 & 0xFF in _AOUT_MACHINES:
        return f"an a.out program ({kind})"
    if data[_ISO9660_AT : _ISO9660_AT + 5] == _ISO9660:
        return "an ISO 9660 image of a CD or DVD"
    if data[_BOOT_SECTOR_AT : _BOOT_SECTOR_AT + 2] == _BOOT_SECTOR:
        return "a boot sector or a raw disk image: --disk takes it"
    return None


def multiboot(data: bytes) -> str | None:
    """Return "multiboot" or "multiboot2" where the file has that header."""
    for magic, words, within, step, name in (
        (_MULTIBOOT2, 4, _MULTIBOOT2_WITHIN, 8, "multiboot2"),
        (_MULTIBOOT, 3, _MULTIBOOT_WITHIN, 4, "multiboot"),
    ):
        at = data.find(magic.to_bytes(4, "little"), 0, within)
        while at >= 0:
            fields = data[at : at + 4 * words]
            if at % step == 0 and len(fields) == 4 * words:
                total = sum(struct.unpack(f"<{words}I", fields))
                if total & 0xFFFF_FFFF == 0:
                    return name
            at = data.find(magic.to_bytes(4, "little"), at + 1, within)
    return None


def elf_kind(data: bytes) -> str:
    """Return what an ELF file is: its class, byte order and machine."""
    if len(data) < 20:
        return "the beginning of an ELF file"
    machine = int.from_bytes(data[18:20], "big" if data[5] == 2 else "little")
    name = _ELF_MACHINES.get(machine, f"machine {machine}")
    wide = {1: "32-bit", 2: "64-bit"}.get(data[4], "odd")
    return f"a {wide} ELF file for {name}"


def _pe(data: bytes) -> str:
    at = _word(data, 0x3C) if len(data) >= 0x40 else 0
    if data[at : at + 4] != b"PE\0\0" or len(data) < at + 24 + 70:
        return "a DOS program"
    machine = int.from_bytes(data[at + 4 : at + 6], "little")
    name = _PE_MACHINES.get(machine, f"machine {machine:#x}")
    # Optional header, "Subsystem": 10 to 13 are EFI's.
    subsystem = int.from_bytes(data[at + 24 + 68 : at + 24 + 70], "little")
    what = "an EFI program" if subsystem in range(10, 14) else "a Windows program (PE)"
    if data[4:8] == b"zimg":
        what = "an EFI program with a compressed Linux kernel (zboot)"
    elif b".linux\0\0" in data[at : at + 4096]:
        what = "a unified kernel image (EFI)"
    return f"{what} for {name}"


def _inside(data: bytes, compression: str) -> str | None:
    """Return what the beginning of a compressed file holds, where Python unpacks it."""
    import bz2
    import lzma
    import zlib

    try:
        if compression == "gzip":
            start = zlib.decompressobj(wbits=31).decompress(data, 65536)
        elif compression in ("xz", "lzma"):
            start = lzma.LZMADecompressor().decompress(data, 65536)
        elif compression == "bzip2":
            start = bz2.BZ2Decompressor().decompress(data, 65536)
        elif compression == "zstd":
            import zstandard

            with zstandard.ZstdDecompressor().stream_reader(data) as reader:
                start = reader.read(65536)
        else:
            return None
    except Exception:  # each decompressor has errors of its own kind
        return None
    return None if any(start.startswith(magic) for magic, _ in _COMPRESSED) else described(start)


def _word(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")
