"""A Linux program for x86-64 as a file: what of the ELF format two small programs need."""

from __future__ import annotations

import struct

# Where the parts lie: data and code in one segment, room to write to in another.
CODE = 0x40_0000
ROOM = 0x50_0000
PAGE = 0x1000

# ELF-64 (System V ABI chapter 4 and 5): file header, program header.
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_EXECUTABLE, _X86_64, _LOAD = 2, 62, 1
_READABLE, _WRITABLE, _RUNNABLE = 4, 2, 1


def body_address() -> int:
    """Return where the body of a `program` lies."""
    return CODE + _HEADER.size + 2 * _SEGMENT.size


def program(body: bytes, entry: int, room: int = PAGE) -> bytes:
    """Return the file of a program of data and code, `body`, that begins at the address `entry`.

    It may write to `room` bytes from ROOM on, which are zero when it begins.
    """
    size = _HEADER.size + 2 * _SEGMENT.size + len(body)
    header = _HEADER.pack(
        b"\x7fELF\x02\x01\x01", _EXECUTABLE, _X86_64, 1, entry, _HEADER.size,
        0, 0, _HEADER.size, _SEGMENT.size, 2, 0, 0, 0,
    )  # fmt: skip
    code = _SEGMENT.pack(_LOAD, _READABLE | _RUNNABLE, 0, CODE, CODE, size, size, PAGE)
    writable = _SEGMENT.pack(_LOAD, _READABLE | _WRITABLE, 0, ROOM, ROOM, 0, room, PAGE)
    return header + code + writable + body
