"""Reading Linux kernel files: bzImage and ELF vmlinux, for a direct 64-bit boot.

A bzImage is a small real-mode setup, a decompressor and a compressed vmlinux.
The fastest decompressor is the host's: the payload is taken out and unpacked
here, and the guest starts in the real kernel's `startup_64`. The kernel is
loaded at the physical addresses it is linked for, so that no relocation is
needed (its relocation table, behind the ELF file in the payload, is not used).

Sources: Documentation/arch/x86/boot.rst of the Linux source (setup header),
System V ABI chapter 4 and 5 (ELF). Everything in a file is checked before it
is used, because kernel files come from anywhere.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable
from pathlib import Path

from ringzero.board.boot import kernelcache
from ringzero.board.boot.kernelimage import SETUP_SECTS, KernelImage, Segment
from ringzero.errors import GuestImageError
from ringzero.records import replace
from ringzero.units import MIB, format_size

# No kernel comes near this; more is a damaged or hostile file.
MAX_KERNEL_SIZE = 1024 * MIB

# boot.rst, "The Real-Mode Kernel Header": offsets in the file.
_BOOT_FLAG = 0x1FE
_HEADER_MAGIC = 0x202
_PROTOCOL = 0x206
_KERNEL_VERSION = 0x20E
_XLOADFLAGS = 0x236
_CMDLINE_SIZE = 0x238
_PAYLOAD_OFFSET = 0x248
_PAYLOAD_LENGTH = 0x24C
_SECTOR = 512
# payload_offset and payload_length exist since protocol 2.08, xloadflags since 2.12.
_PROTOCOL_PAYLOAD = 0x0208
_PROTOCOL_XLOADFLAGS = 0x020C
_XLF_KERNEL_64 = 1 << 0
# The header ends here: the jump instruction at 0x200 goes over it.
_HEADER_END = 0x268
# COMMAND_LINE_SIZE of x86 Linux, minus its NUL, where no header tells.
_DEFAULT_CMDLINE = 2047

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_PT_LOAD = 1
_EM_X86_64 = 62
_ET_EXEC = 2
_ELF_TYPES = {
    1: "an object or kernel module",
    3: "a program or shared library that may lie anywhere",
    4: "a core dump",
}
_MAX_SEGMENTS = 64

_BANNER = re.compile(rb"Linux version (\S{1,128}) [^\0\n]{0,1024}")
# The address space that a kernel can be linked for: physical addresses of 46 bits.
_MAX_ADDRESS = 1 << 46

_HINT = "give a bzImage (vmlinuz) or an uncompressed 64-bit ELF vmlinux"


def load_kernel(path: Path, cache: Path | None = None) -> KernelImage:
    """Read the kernel file `path`.

    With `cache` (a directory), the unpacked kernel is kept there, so that the
    next start need not read the file again (`board.kernelcache`). Raises
    GuestImageError for anything that is no bootable x86-64 kernel.
    """
    try:
        status = path.stat()
        if cache is not None and (kept := kernelcache.recall(status, cache)) is not None:
            return kept
        size = status.st_size
        if size > MAX_KERNEL_SIZE:
            raise GuestImageError(
                f"{path} is too large for a kernel ({format_size(size)})", hint=_HINT
            )
        data = path.read_bytes()
    except OSError as fault:
        raise GuestImageError(
            f"cannot read the kernel {path}: {fault.strerror}", hint="check the path", path=path
        ) from fault
    try:
        image = parse_kernel(data)
    except GuestImageError as fault:
        raise GuestImageError(
            f"{path}: {fault.message}", hint=fault.hint, path=path, **fault.context
        ) from fault
    if cache is not None:
        image = replace(image, segments=kernelcache.sparse(image.segments))
        kernelcache.remember(status, image, cache)
    return image


def parse_kernel(data: bytes) -> KernelImage:
    """As `load_kernel`, for the content of a kernel file."""
    if data[:4] == b"\x7fELF":
        return _elf(data, "vmlinux", b"", _DEFAULT_CMDLINE, None)
    if len(data) >= _HEADER_END and data[_HEADER_MAGIC : _HEADER_MAGIC + 4] == b"HdrS":
        return _bzimage(data)
    if not data:
        raise GuestImageError("the kernel file is empty", hint=_HINT)
    raise _not_linux("", data)


def _not_linux(lead: str, data: bytes | memoryview) -> GuestImageError:
    """Return the error for what is no kernel of ours; it says what it is, where that is known."""
    from ringzero.board.boot.foreign import described

    seen = described(bytes(data))
    message = "not a Linux kernel" + (f" but {seen}" if seen else "")
    return GuestImageError(lead + message, hint=_HINT, seen=bytes(data[:4]).hex())


def _bzimage(data: bytes) -> KernelImage:
    def u16(offset: int) -> int:
        return int.from_bytes(data[offset : offset + 2], "little")

    def u32(offset: int) -> int:
        return int.from_bytes(data[offset : offset + 4], "little")

    protocol = u16(_PROTOCOL)
    if u16(_BOOT_FLAG) != 0xAA55 or protocol < _PROTOCOL_PAYLOAD:
        raise GuestImageError(
            f"kernel with boot protocol {protocol >> 8}.{protocol & 255:02d} is too old",
            hint="2.08 (Linux 2.6.26) is the oldest that tells where its payload is",
        )
    # boot.rst: for backwards compatibility, 0 means 4.
    setup = (data[SETUP_SECTS] or 4) + 1
    start = setup * _SECTOR + u32(_PAYLOAD_OFFSET)
    length = u32(_PAYLOAD_LENGTH)
    if length == 0:
        version = _setup_version(data, setup * _SECTOR)
        what = f" ({version})" if version else ""
        raise GuestImageError(
            f"a file with Linux's boot header that is no Linux kernel{what}: it has no payload, "
            "as memtest86+ has none",
            hint=_HINT,
        )
    if protocol >= _PROTOCOL_XLOADFLAGS and not u16(_XLOADFLAGS) & _XLF_KERNEL_64:
        raise GuestImageError("a 32-bit kernel", hint="a 64-bit (x86-64) kernel is needed")
    if start + length > len(data):
        raise GuestImageError(
            "the kernel file is cut short",
            hint="copy the file again",
            expected=start + length,
            seen=len(data),
        )
    vmlinux = decompress(data[start : start + length])
    return _elf(
        vmlinux,
        "bzImage",
        data[SETUP_SECTS:_HEADER_END],
        u32(_CMDLINE_SIZE) or _DEFAULT_CMDLINE,
        _setup_version(data, setup * _SECTOR),
    )


def _setup_version(data: bytes, setup_end: int) -> str | None:
    offset = int.from_bytes(data[_KERNEL_VERSION : _KERNEL_VERSION + 2], "little")
    start = offset + 0x200
    if offset == 0 or start >= setup_end:
        return None
    text = data[start : min(setup_end, start + 512)].split(b"\0")[0]
    return text.split(b" ")[0].decode("ascii", "replace") or None


def decompress(payload: bytes) -> bytes:
    """Return a bzImage payload decompressed; its first bytes tell the format.

    Raises GuestImageError for unknown formats, damage, and results beyond
    `MAX_KERNEL_SIZE`.
    """
    found = next((f for f in _FORMATS if payload.startswith(f[0])), None)
    if found is None:
        raise GuestImageError(
            "unknown compression of the kernel's payload",
            hint="gzip, xz, lzma, bzip2, lz4, zstd and uncompressed payloads are known",
            seen=payload[:6].hex(),
        )
    _, name, unpack = found
    try:
        result = unpack(payload)
    except GuestImageError:
        raise
    except Exception as fault:  # each decompressor has errors of its own kind
        raise GuestImageError(
            f"the kernel's {name} payload is damaged: {fault}", hint="copy the file again"
        ) from fault
    if not result:
        raise GuestImageError(f"the kernel's {name} payload is empty or cut short")
    return result


def _too_large() -> GuestImageError:
    return GuestImageError(f"the kernel unpacks to more than {format_size(MAX_KERNEL_SIZE)}")


def _gzip(payload: bytes) -> bytes:
    import zlib

    stream = zlib.decompressobj(wbits=31)
    return _finish(stream.decompress(payload, MAX_KERNEL_SIZE), stream.eof)


def _xz(payload: bytes) -> bytes:
    import lzma

    stream = lzma.LZMADecompressor()
    return _finish(stream.decompress(payload, MAX_KERNEL_SIZE), stream.eof)


def _bzip2(payload: bytes) -> bytes:
    import bz2

    stream = bz2.BZ2Decompressor()
    return _finish(stream.decompress(payload, MAX_KERNEL_SIZE), stream.eof)


def _zstd(payload: bytes) -> bytes:
    import zstandard

    stream = zstandard.ZstdDecompressor(max_window_size=MAX_KERNEL_SIZE).decompressobj()
    parts: list[bytes] = []
    total = 0
    # Fed in pieces, so that a bomb is seen before it fills the memory.
    for start in range(0, len(payload), MIB // 16):
        part = stream.decompress(payload[start : start + MIB // 16])
        parts.append(part)
        total += len(part)
        if total > MAX_KERNEL_SIZE:
            raise _too_large()
        if stream.eof:
            break
    return _finish(b"".join(parts), stream.eof)


def _lz4(payload: bytes) -> bytes:
    """The "legacy" lz4 format: magic, then blocks of up to 8 MiB, each with its packed size."""
    from lz4 import block

    parts: list[bytes] = []
    offset, total = 4, 0
    while offset + 4 <= len(payload):
        size = int.from_bytes(payload[offset : offset + 4], "little")
        offset += 4
        # The kernel's build appends the unpacked size, which is no block.
        if size == 0 or offset + size > len(payload):
            if size == total and offset == len(payload):
                return b"".join(parts)
            raise GuestImageError("the kernel's lz4 payload is cut short")
        part = block.decompress(payload[offset : offset + size], uncompressed_size=8 * MIB)
        parts.append(part)
        total += len(part)
        if total > MAX_KERNEL_SIZE:
            raise _too_large()
        offset += size
    return b"".join(parts)


def _finish(data: bytes, ended: bool) -> bytes:
    if not ended:
        if len(data) >= MAX_KERNEL_SIZE:
            raise _too_large()
        raise GuestImageError("the kernel's compressed payload is cut short")
    return data


_FORMATS: tuple[tuple[bytes, str, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"\x5d\0\0", "lzma", _xz),
    (b"BZh", "bzip2", _bzip2),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\x02\x21\x4c\x18", "lz4", _lz4),
    (b"\x7fELF", "uncompressed", bytes),
)


def _not_x86_64(data: bytes | memoryview) -> GuestImageError:
    from ringzero.board.boot.foreign import elf_kind, multiboot

    start = bytes(data[:65536])
    boot = multiboot(start)
    what = elf_kind(start) + (f", a {boot} kernel" if boot else "")
    return GuestImageError(f"an ELF file, but not for x86-64: {what}", hint=_HINT)


def _elf(
    data: bytes | memoryview,
    kind: str,
    setup_header: bytes,
    command_line_size: int,
    version: str | None,
) -> KernelImage:
    if len(data) < _ELF_HEADER.size or data[:4] != b"\x7fELF":
        raise GuestImageError("the kernel's ELF header is cut short or missing", hint=_HINT)
    (ident, file_type, machine, _, entry, table, _, _, _, entry_size, count, _, _, _) = (
        _ELF_HEADER.unpack_from(data)
    )
    if ident[4] != 2 or ident[5] != 1 or machine != _EM_X86_64:
        raise _not_x86_64(data)
    if file_type != _ET_EXEC:
        what = _ELF_TYPES.get(file_type, f"of type {file_type}")
        raise GuestImageError(f"an ELF file, but not an executable kernel: {what}", hint=_HINT)
    if entry_size != _PROGRAM_HEADER.size or not 0 < count <= _MAX_SEGMENTS:
        raise GuestImageError("an ELF file with a senseless program header table", count=count)
    if table + count * entry_size > len(data):
        raise GuestImageError("the ELF program headers lie outside the file", offset=table)
    segments = []
    for number in range(count):
        kind_of, _, offset, _, address, file_size, size, _ = _PROGRAM_HEADER.unpack_from(
            data, table + number * entry_size
        )
        if kind_of != _PT_LOAD or size == 0:
            continue
        if offset + file_size > len(data):
            raise GuestImageError(
                f"ELF segment {number} reaches beyond the end of the file",
                hint="the file is cut short; copy it again",
                expected=offset + file_size,
                seen=len(data),
            )
        if file_size > size or address + size > _MAX_ADDRESS or size > MAX_KERNEL_SIZE:
            raise GuestImageError(
                f"ELF segment {number} has a senseless size or address",
                address=hex(address),
                size=size,
            )
        segments.append(Segment(address, memoryview(data)[offset : offset + file_size], size))
    _check_layout(segments, entry)
    return KernelImage(
        kind, entry, tuple(segments), version or _banner(data), setup_header, command_line_size
    )


def _check_layout(segments: list[Segment], entry: int) -> None:
    if not segments:
        raise GuestImageError("an ELF file without anything to load", hint=_HINT)
    ordered = sorted(segments, key=lambda segment: segment.address)
    for before, after in itertools.pairwise(ordered):
        if before.address + before.size > after.address:
            raise GuestImageError(
                "ELF segments overlap", first=hex(before.address), second=hex(after.address)
            )
    if not any(s.address <= entry < s.address + len(s.data) for s in segments):
        raise GuestImageError("the ELF entry point lies outside what is loaded", entry=hex(entry))


def _banner(data: bytes | memoryview) -> str:
    match = _BANNER.search(data)
    return match[1].decode("ascii", "replace") if match else "unknown"
