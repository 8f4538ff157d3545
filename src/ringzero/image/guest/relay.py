"""The program in ringzero's own guests that copies a command's input.

    relay <FROM >TO     copy until end of file

The guest's ports give 4 KiB at a time and take 32, and cat(1) of busybox copies 4: each piece
costs two switches between processes, or an exit of the machine. This program writes as much at
once as is there to be read, up to BUFFER bytes, and makes pipes as large as that times four.

Exit status 0 at end of file, 1 when it cannot write; a pipe that nobody reads ends it by SIGPIPE.
"""

from __future__ import annotations

import struct

from ringzero.image.guest import elf
from ringzero.image.guest.code import Code, system_call

# System calls of x86-64 Linux (arch/x86/entry/syscalls/syscall_64.tbl).
READ, WRITE, POLL, EXIT, FCNTL = 0, 1, 7, 60, 72
# fcntl(2): what is no pipe refuses it, which does no harm.
F_SETPIPE_SZ = 1031
POLLIN = 1

BUFFER = 64 << 10
PIPE = 4 * BUFFER
# A struct pollfd for standard input, of zeros but for `events`, behind the buffer.
_POLLFD = elf.ROOM + BUFFER
_EVENTS, _REVENTS = _POLLFD + 4, _POLLFD + 6
ROOM_SIZE = BUFFER + elf.PAGE


def _disp32(code: bytes, value: int) -> bytes:
    return code + struct.pack("<I", value)


def code() -> bytes:
    """Return the program's code; r12 counts the bytes read, r13 those of them that are written."""
    program = Code()
    program.add(
        system_call(FCNTL, edi=0, esi=F_SETPIPE_SZ, edx=PIPE),
        system_call(FCNTL, edi=1, esi=F_SETPIPE_SZ, edx=PIPE),
        # mov dword [_EVENTS], POLLIN
        _disp32(b"\xc7\x04\x25", _EVENTS) + struct.pack("<I", POLLIN),
    )
    program.label("begin").add(b"\x45\x31\xe4")  # xor r12d, r12d
    program.label("read").add(
        _disp32(b"\x49\x8d\xb4\x24", elf.ROOM),  # lea rsi, [r12 + ROOM]
        _disp32(b"\xba", BUFFER),  # mov edx, BUFFER
        b"\x44\x29\xe2",  # sub edx, r12d
        b"\x31\xff\x31\xc0\x0f\x05",  # xor edi, edi; xor eax, eax (READ); syscall
        b"\x48\x85\xc0",  # test rax, rax
    ).jump("jle", "ended")
    program.add(
        b"\x49\x01\xc4",  # add r12, rax
        _disp32(b"\x41\x81\xfc", BUFFER),  # cmp r12d, BUFFER
    ).jump("jae", "write")
    program.add(
        system_call(POLL, edi=_POLLFD, esi=1, edx=0),
        _disp32(b"\xf6\x04\x25", _REVENTS) + bytes((POLLIN,)),  # test byte [_REVENTS], POLLIN
    ).jump("jne", "read")
    program.label("write").add(b"\x45\x31\xed")  # xor r13d, r13d
    program.label("rest").add(
        _disp32(b"\x49\x8d\xb5", elf.ROOM),  # lea rsi, [r13 + ROOM]
        b"\x44\x89\xe2",  # mov edx, r12d
        b"\x44\x29\xea",  # sub edx, r13d
        _disp32(b"\xbf", 1),  # mov edi, 1
        _disp32(b"\xb8", WRITE) + b"\x0f\x05",  # mov eax, WRITE; syscall
        b"\x48\x85\xc0",  # test rax, rax
    ).jump("jle", "failed")
    program.add(
        b"\x49\x01\xc5",  # add r13, rax
        b"\x45\x39\xe5",  # cmp r13d, r12d
    ).jump("jb", "rest")
    program.jump("jmp", "begin")
    program.label("ended").add(b"\x45\x85\xe4")  # test r12d, r12d
    program.jump("jne", "write")
    program.add(system_call(EXIT, edi=0))
    return program.label("failed").add(system_call(EXIT, edi=1)).build()


def build() -> bytes:
    """Return the whole program as an ELF file."""
    return elf.program(code(), elf.body_address(), ROOM_SIZE)
