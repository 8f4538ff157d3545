"""ACPI Machine Language, as much of it as the boards' tables need (ACPI 6.5 chapter 20)."""

from __future__ import annotations

import struct

ZERO, ONE = b"\x00", b"\x01"
ARG0 = b"\x68"


def integer(value: int) -> bytes:
    """Return a ComputationalData constant of the smallest size (20.2.3)."""
    if value == 0:
        return ZERO
    if value == 1:
        return ONE
    for prefix, code in ((0x0A, "<B"), (0x0B, "<H"), (0x0C, "<I"), (0x0E, "<Q")):
        if value >> 8 * struct.calcsize(code) == 0:
            return bytes((prefix,)) + struct.pack(code, value)
    raise ValueError(f"{value:#x} has more than 64 bits")


def string(text: str) -> bytes:
    """Return a String constant."""
    return b"\x0d" + text.encode("ascii") + b"\x00"


def eisa_id(text: str) -> bytes:
    """Return a plug-and-play name such as "PNP0501" as the integer it packs into (19.3.4)."""
    letters = [ord(c) - 0x40 for c in text[:3]]
    packed = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return b"\x0c" + packed.to_bytes(4, "big")


def _length(body: bytes) -> bytes:
    """Return PkgLength and `body` (20.2.4); the length counts its own bytes."""
    size = len(body)
    if size + 1 < 1 << 6:
        return bytes((size + 1,)) + body
    for extra in (1, 2, 3):
        total = size + 1 + extra
        if total < 1 << 4 + 8 * extra:
            tail = (total >> 4).to_bytes(extra, "little")
            return bytes((extra << 6 | total & 0xF,)) + tail + body
    raise ValueError("AML package is too long")


def _path(path: str) -> bytes:
    r"""Return a NameString (20.2.2): `\` for the root, segments of up to 4 letters."""
    root = b"\\" if path.startswith("\\") else b""
    segments = [part.ljust(4, "_").encode("ascii") for part in path.lstrip("\\").split(".")]
    if len(segments) == 1:
        return root + segments[0]
    if len(segments) == 2:
        return root + b"\x2e" + b"".join(segments)
    return root + b"\x2f" + bytes((len(segments),)) + b"".join(segments)


def name(path: str, value: bytes) -> bytes:
    """Return Name(path, value)."""
    return b"\x08" + _path(path) + value


def package(*items: bytes) -> bytes:
    """Return Package() {items}."""
    return b"\x12" + _length(bytes((len(items),)) + b"".join(items))


def buffer(data: bytes) -> bytes:
    """Return Buffer() {data}."""
    return b"\x11" + _length(integer(len(data)) + data)


def scope(path: str, *body: bytes) -> bytes:
    """Return Scope(path) {body}."""
    return b"\x10" + _length(_path(path) + b"".join(body))


def device(path: str, *body: bytes) -> bytes:
    """Return Device(path) {body}."""
    return b"\x5b\x82" + _length(_path(path) + b"".join(body))


def method(path: str, arguments: int, *body: bytes) -> bytes:
    """Return Method(path, arguments, Serialized) {body} (20.2.5.2)."""
    serialized = 1 << 3
    return b"\x14" + _length(_path(path) + bytes((arguments | serialized,)) + b"".join(body))


def if_equal(left: bytes, right: bytes, *body: bytes) -> bytes:
    """Return If (left == right) {body} (20.2.5.3, 20.2.5.4)."""
    return b"\xa0" + _length(b"\x93" + left + right + b"".join(body))


def notify(path: str, value: int) -> bytes:
    """Return Notify(path, value) (20.2.5.3)."""
    return b"\x86" + _path(path) + integer(value)


def resources(*items: bytes) -> bytes:
    """Return a resource template with its end tag (6.4.2.9; checksum 0 means none)."""
    return buffer(b"".join(items) + b"\x79\x00")


def io_ports(base: int, count: int) -> bytes:
    """Return a fixed range of I/O ports, 16-bit decoded (6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, 1, count)


def memory_32(base: int, size: int) -> bytes:
    """Return a fixed range of read-write memory (6.4.3.4)."""
    return struct.pack("<BHBII", 0x86, 9, 1, base, size)


def interrupt(gsi: int) -> bytes:
    """Return one edge-triggered, active-high, exclusive interrupt (6.4.3.6)."""
    consumer, edge = 1, 2
    return struct.pack("<BHBBI", 0x89, 6, consumer | edge, 1, gsi)
