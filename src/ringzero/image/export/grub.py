"""GRUB 2 for a BIOS, put together from the files of Debian's grub-pc-bin as grub-mkimage does.

    boot.img       the first sector: loads the first sector of what follows
    diskboot.img   that one: loads the rest, which lies behind it in one piece
    core           lzma_decompress.img, and packed by LZMA: kernel, modules, a script, the prefix

GRUB loads modules as it loads them from files: nothing is linked here. Where numbers go is in
GRUB's include/grub/offsets.h and include/grub/kernel.h, all of them little-endian.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Mapping, Sequence

from ringzero.errors import GuestImageError

SECTOR = 512
# Code of the first sector ends where the identifier of a partition table begins.
BOOT_CODE = 440
# boot.img: the sector of what it loads; a jump that only floppies need.
_KERNEL_SECTOR, _DRIVE_CHECK, _NOPS = 0x5C, 0x66, b"\x90\x90"
# diskboot.img: the last of its lists of sectors: start, length, segment.
_LIST = struct.Struct("<QHH")
_LIST_AT, _SEGMENT = SECTOR - _LIST.size, 0x820
# lzma_decompress.img: how long it is packed, and plain.
_PACKED_SIZE, _PLAIN_SIZE = 0x08, 0x0C
_MAX_DECOMPRESSOR, _LINK = 0x9000 - 0x8200, 0x9000
# A core that is larger reaches into what the BIOS uses.
_MAX_CORE = 0x78000
_MODULE_MAGIC = 0x676D696D  # "mimg"
_ELF, _CONFIG, _PREFIX = 0, 2, 3
_FILTERS = ({"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16, "lc": 3, "lp": 0, "pb": 2},)
_EHDR = struct.Struct("<16sHHIIIIIHHHHHH")
_SHDR = struct.Struct("<IIIIIIIIII")
_PROGBITS, _ALLOCATED = 1, 2

# What a menu that boots Linux from ext4 on a GPT needs, disks by the BIOS.
MODULES = (
    *("biosdisk", "part_gpt", "ext2", "search_fs_uuid", "search", "normal", "configfile", "linux"),
    *("echo", "test", "minicmd", "serial", "terminal", "gzio", "ls", "cat", "halt", "reboot"),
)


def boot_code(image: bytes, sector: int) -> bytes:
    """Return boot.img's code, which loads what begins at a sector of its disk."""
    if len(image) != SECTOR:
        raise _strange("boot.img")
    code = bytearray(image)
    struct.pack_into("<Q", code, _KERNEL_SECTOR, sector)
    code[_DRIVE_CHECK : _DRIVE_CHECK + 2] = _NOPS
    return bytes(code[:BOOT_CODE])


def core_image(files: Mapping[str, bytes], script: str, prefix: str, sector: int) -> bytes:
    """Return what boot.img loads, for its place at a sector of a disk, in whole sectors.

    `files` are those of i386-pc by their names. `script` is run first, in GRUB's simple language.
    Raises GuestImageError where they are not what this knows.
    """
    kernel = _kernel(_file(files, "kernel.img"))
    objects = [(_ELF, _file(files, name)) for name in with_dependencies(files, MODULES)]
    objects += [(_CONFIG, script.encode() + b"\0"), (_PREFIX, prefix.encode() + b"\0")]
    body = b"".join(_object(kind, data) for kind, data in objects)
    plain = kernel + struct.pack("<III", _MODULE_MAGIC, 12, 12 + len(body)) + body
    packed = lzma.compress(plain, lzma.FORMAT_RAW, filters=_FILTERS)
    decompressor = bytearray(_file(files, "lzma_decompress.img"))
    first = bytearray(_file(files, "diskboot.img"))
    if len(decompressor) > _MAX_DECOMPRESSOR:
        raise _strange("lzma_decompress.img")
    if len(first) != SECTOR or _LIST.unpack_from(first, _LIST_AT)[2] != _SEGMENT:
        raise _strange("diskboot.img")
    struct.pack_into("<I", decompressor, _PACKED_SIZE, len(packed))
    struct.pack_into("<I", decompressor, _PLAIN_SIZE, len(plain))
    core = bytes(decompressor) + packed
    if _LINK + len(core) > _MAX_CORE:
        raise GuestImageError(f"GRUB's core of {len(core)} bytes is too large for a BIOS")
    core = core.ljust(-(-len(core) // SECTOR) * SECTOR, b"\0")
    _LIST.pack_into(first, _LIST_AT, sector + 1, len(core) // SECTOR, _SEGMENT)
    return bytes(first) + core


def _kernel(image: bytes) -> bytes:
    """Return the kernel, an ELF program, as it lies in memory from its address on."""
    try:
        header = _EHDR.unpack_from(image)
        table, size, count = header[6], header[11], header[12]
        sections = [_SHDR.unpack_from(image, table + n * size) for n in range(count)]
    except struct.error:
        raise _strange("kernel.img") from None
    loaded = [s for s in sections if s[1] == _PROGBITS and s[2] & _ALLOCATED]
    if image[:5] != b"\x7fELF\x01" or not loaded:
        raise _strange("kernel.img")
    start, end = min(s[3] for s in loaded), max(s[3] + s[5] for s in loaded)
    if start != _LINK or end > _MAX_CORE:
        raise _strange("kernel.img")
    data = bytearray(end - start)
    for _, _, _, address, offset, length, *_ in loaded:
        data[address - start : address - start + length] = image[offset : offset + length]
    return bytes(data)


def _object(kind: int, data: bytes) -> bytes:
    padded = data.ljust(-(-len(data) // 4) * 4, b"\0")
    return struct.pack("<II", kind, 8 + len(padded)) + padded


def with_dependencies(files: Mapping[str, bytes], names: Sequence[str]) -> list[str]:
    """Return the files of modules and of all that they need, each behind what it needs."""
    needs = dict[str, list[str]]()
    for line in _file(files, "moddep.lst").decode("ascii", "replace").splitlines():
        name, _, rest = line.partition(":")
        needs[name.strip()] = rest.split()
    order = dict[str, None]()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in order or name in path:
            return
        for needed in needs.get(name, ()):
            visit(needed, (*path, name))
        order[name] = None

    for name in names:
        visit(name, ())
    return [f"{name}.mod" for name in order]


def _file(files: Mapping[str, bytes], name: str) -> bytes:
    data = files.get(name)
    if data is None:
        raise GuestImageError(f"the package with GRUB has no {name}")
    return data


def _strange(name: str) -> GuestImageError:
    return GuestImageError(f"{name} of the package with GRUB is not what it should be")
