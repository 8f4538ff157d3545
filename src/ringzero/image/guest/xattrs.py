"""The program in a build's machine that tells the extended attributes of files, and sets them.

    xattrs FILE...      write the attributes of files as records
    xattrs <RECORDS     set them, those that the file system takes

A record is the file's path and the attribute's name, each with a NUL behind it, the value's length
in 8 bytes, little-endian, and the value. Links are not followed. busybox has no program for either.
Exit status 1 when it cannot write. Records are read up to ROOM_SIZE bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from ringzero.errors import GuestImageError
from ringzero.image.guest import elf
from ringzero.image.guest.code import Code, system_call
from ringzero.units import MIB

# System calls of x86-64 Linux (arch/x86/entry/syscalls/syscall_64.tbl).
READ, WRITE, EXIT, LSETXATTR, LGETXATTR, LLISTXATTR = 0, 1, 60, 189, 192, 195
# XATTR_LIST_MAX and XATTR_SIZE_MAX (linux/limits.h).
_MOST = 64 << 10
_LIST, _VALUE, _LENGTH = elf.ROOM, elf.ROOM + _MOST, elf.ROOM + 2 * _MOST
ROOM_SIZE = 8 * MIB
_NUMBER = struct.Struct("<Q")

Record = tuple[bytes, bytes, bytes]


def _imm32(code: bytes, value: int) -> bytes:
    return code + struct.pack("<I", value)


def code() -> bytes:
    """Return the program's code.

    r12 goes through argv or the records, r13 is a path, r14 a name, r15 where the names or the
    records end, rbx a value's length.
    """
    program = Code()
    program.add(
        b"\x4c\x8d\x64\x24\x10",  # lea r12, [rsp + 16]
        b"\x83\x3c\x24\x01",  # cmp dword [rsp], 1
    ).jump("jle", "restore")
    program.label("file").add(
        b"\x4d\x8b\x2c\x24",  # mov r13, [r12]
        b"\x49\x83\xc4\x08",  # add r12, 8
        b"\x4d\x85\xed",  # test r13, r13
    ).jump("je", "done")
    program.add(
        b"\x4c\x89\xef",  # mov rdi, r13
        system_call(LLISTXATTR, esi=_LIST, edx=_MOST),
        b"\x48\x85\xc0",  # test rax, rax
    ).jump("jle", "file")
    program.add(
        _imm32(b"\x41\xbe", _LIST),  # mov r14d, _LIST
        _imm32(b"\x4c\x8d\xb8", _LIST),  # lea r15, [rax + _LIST]
    )
    program.label("name").add(b"\x4d\x39\xfe").jump("jae", "file")  # cmp r14, r15
    program.add(
        b"\x4c\x89\xef\x4c\x89\xf6",  # mov rdi, r13; mov rsi, r14
        system_call(LGETXATTR, edx=_VALUE, r10d=_MOST),
        b"\x48\x89\xc3\x48\x85\xc0",  # mov rbx, rax; test rax, rax
    ).jump("js", "next")
    program.add(b"\x4c\x89\xee").jump("call", "text")  # mov rsi, r13
    program.add(b"\x4c\x89\xf6").jump("call", "text")  # mov rsi, r14
    program.add(
        _imm32(b"\x48\x89\x1c\x25", _LENGTH),  # mov [_LENGTH], rbx
        _imm32(b"\xbe", _LENGTH),  # mov esi, _LENGTH
        _imm32(b"\xba", _NUMBER.size),  # mov edx, 8
    ).jump("call", "put")
    program.add(
        _imm32(b"\xbe", _VALUE),  # mov esi, _VALUE
        b"\x48\x89\xda",  # mov rdx, rbx
    ).jump("call", "put")
    program.label("next")
    _pass_text(program, "names", b"\x41\x80\x3e\x00\x4d\x8d\x76\x01")  # [r14]; r14 + 1
    program.jump("jmp", "name")
    # Write the text at rsi with its NUL: rdx becomes its length.
    program.label("text").add(b"\x31\xd2")  # xor edx, edx
    _pass_text(program, "length", b"\x80\x3c\x16\x00\x48\x8d\x52\x01")  # [rsi + rdx]; rdx + 1
    program.label("put").add(
        system_call(WRITE, edi=1),
        b"\x48\x85\xc0",  # test rax, rax
    ).jump("js", "failed").add(b"\xc3")  # ret
    _restore(program)
    program.label("done").add(system_call(EXIT, edi=0))
    return program.label("failed").add(system_call(EXIT, edi=1)).build()


def _pass_text(program: Code, label: str, step: bytes) -> None:
    """Append a loop to behind a NUL; `step` is cmp byte [register], 0; lea register + 1."""
    program.label(label).add(step).jump("jne", label)


def _restore(program: Code) -> None:
    """Append what reads all records, and sets them; lea keeps the flags of cmp."""
    program.label("restore").add(
        _imm32(b"\x41\xbf", elf.ROOM),  # mov r15d, ROOM
    )
    program.label("read").add(
        b"\x4c\x89\xfe",  # mov rsi, r15
        _imm32(b"\xba", elf.ROOM + ROOM_SIZE),  # mov edx, ROOM + ROOM_SIZE
        b"\x44\x29\xfa",  # sub edx, r15d
        system_call(READ, edi=0),
        b"\x49\x01\xc7",  # add r15, rax
        b"\x48\x85\xc0",  # test rax, rax
    ).jump("js", "failed").jump("jne", "read")
    program.add(_imm32(b"\x41\xbc", elf.ROOM))  # mov r12d, ROOM
    program.label("record").add(b"\x4d\x39\xfc").jump("jae", "done")  # cmp r12, r15
    program.add(b"\x4d\x89\xe5")  # mov r13, r12
    _pass_text(program, "path", b"\x41\x80\x3c\x24\x00\x4d\x8d\x64\x24\x01")  # [r12]; r12 + 1
    program.add(b"\x4d\x89\xe6")  # mov r14, r12
    _pass_text(program, "attribute", b"\x41\x80\x3c\x24\x00\x4d\x8d\x64\x24\x01")
    program.add(
        b"\x49\x8b\x1c\x24",  # mov rbx, [r12]
        b"\x4c\x89\xef\x4c\x89\xf6",  # mov rdi, r13; mov rsi, r14
        b"\x49\x8d\x54\x24\x08",  # lea rdx, [r12 + 8]
        b"\x49\x89\xda",  # mov r10, rbx
        system_call(LSETXATTR, r8d=0),
        b"\x4d\x8d\x64\x1c\x08",  # lea r12, [r12 + rbx + 8]
    ).jump("jmp", "record")


def build() -> bytes:
    """Return the whole program as an ELF file."""
    return elf.program(code(), elf.body_address(), ROOM_SIZE)


def pack(records: Iterable[Record]) -> Iterator[bytes]:
    """Yield records as the program reads them, so many at once as it takes."""
    whole = bytearray()
    for path, name, value in records:
        record = path + b"\0" + name + b"\0" + _NUMBER.pack(len(value)) + value
        if len(whole) + len(record) >= ROOM_SIZE:
            yield bytes(whole)
            whole.clear()
        whole += record
    if whole:
        yield bytes(whole)


def unpack(data: memoryview) -> tuple[list[Record], int]:
    """Return the records that `data` begins with, and where an empty path ends them.

    Raises GuestImageError.
    """
    found, at = list[Record](), 0
    window = 1 << 16
    while True:
        path, at = _text(data, at, window)
        if not path:
            return found, at
        name, at = _text(data, at, window)
        end = at + _NUMBER.size
        if end > len(data):
            raise _damaged()
        (size,) = _NUMBER.unpack(data[at:end])
        if size > _MOST or end + size > len(data):
            raise _damaged()
        found.append((path, name, bytes(data[end : end + size])))
        at = end + size


def _text(data: memoryview, at: int, window: int) -> tuple[bytes, int]:
    text, end, _ = bytes(data[at : at + window]).partition(b"\0")
    if not end:
        raise _damaged()
    return text, at + len(text) + 1


def _damaged() -> GuestImageError:
    return GuestImageError("the build's machine tells attributes that are none")
