"""Small made-up kernels: right in form, as the boot protocol and the ELF specification have it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct

BANNER = b"Linux version 6.6.6-test (someone@somewhere) #1 SMP\n\0"


def elf(segments=None, entry=0x1000000, *, machine=62, kind=2, bits=2, count=None):
    """Return an ELF file; `segments` are (address, content, memory size)."""
    if segments is None:
        code = b"\xf4" * 300 + BANNER
        segments = [(0x1000000, code, 4096), (0x2000000, b"data", 8192)]
    headers, body = b"", b""
    start = 64 + 56 * len(segments)
    for address, content, size in segments:
        headers += struct.pack(
            "<IIQQQQQQ", 1, 7, start + len(body), address, address, len(content), size, 0x200000
        )
        body += content
    ident = b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9)
    number = len(segments) if count is None else count
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, kind, machine, 1, entry, 64, 0, 0, 64, 56, number, 64, 0, 0
    )
    return head + headers + body


def lz4_legacy(data, block=8 << 20):
    """As `lz4 -l` writes it, with the size that the kernel's build appends."""
    from lz4 import block as lz4

    out = b"\x02\x21\x4c\x18"
    for start in range(0, len(data), block):
        packed = lz4.compress(data[start : start + block], store_size=False)
        out += struct.pack("<I", len(packed)) + packed
    return out + struct.pack("<I", len(data))


def _zstd(data):
    import zstandard

    return zstandard.ZstdCompressor().compress(data) + struct.pack("<I", len(data))


def _sized(pack):
    return lambda data: pack(data) + struct.pack("<I", len(data))


COMPRESSIONS = {
    "gzip": gzip.compress,
    "xz": _sized(lambda d: lzma.compress(d, check=lzma.CHECK_CRC32)),
    "lzma": _sized(lambda d: lzma.compress(d, lzma.FORMAT_ALONE)),
    "bzip2": _sized(bz2.compress),
    "lz4": lz4_legacy,
    "zstd": _zstd,
    "none": bytes,
}


def bzimage(payload, *, protocol=0x020F, xloadflags=1, setup_sectors=4, version=b"6.6.6-test x"):
    """Return a bzImage around `payload`."""
    setup = bytearray((setup_sectors + 1) * 512)
    setup[0x1F1] = setup_sectors
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x200:0x202] = b"\xeb\x66"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    struct.pack_into("<H", setup, 0x20E, 0x300)
    struct.pack_into("<H", setup, 0x236, xloadflags)
    struct.pack_into("<I", setup, 0x238, 2047)
    struct.pack_into("<I", setup, 0x248, 1000)
    struct.pack_into("<I", setup, 0x24C, len(payload))
    setup[0x500 : 0x500 + len(version) + 1] = version + b"\0"
    return bytes(setup) + bytes(1000) + payload + bytes(64)
