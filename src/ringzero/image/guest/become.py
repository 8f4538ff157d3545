"""The program in ringzero's own guests that runs another as a user.

    become UID GID[,GID ...] PATH WORDS...

It runs the program PATH with the argument vector WORDS as the user UID, whose groups are the
GIDs, the first its own: numbers, as there need be no shell and no su(1) in an image. A file that
is no program is a script for /bin/sh, as execvp(3) has it. Exit status 126 when the user cannot be
had or PATH cannot be run.
"""

from __future__ import annotations

import struct

from ringzero.image.guest import elf
from ringzero.image.guest.code import Code, system_call

# System calls of x86-64 Linux (arch/x86/entry/syscalls/syscall_64.tbl).
EXECVE, EXIT, SETUID, SETGID, SETGROUPS = 59, 60, 105, 106, 116
CANNOT_RUN = 126
# errno(3): a file of no format that the kernel runs.
ENOEXEC = 8
# The groups' numbers, of 32 bits each, lie in the room; as many as fit into it.
MAX_GROUPS = elf.PAGE // 4

_SHELL, _SHELL_NAME = b"/bin/sh\0", b"sh\0"
DATA = _SHELL + _SHELL_NAME


def code(data: int) -> bytes:
    """Return the program's code, whose data (`DATA`) lies at the address `data`."""
    made = Code()
    # At the entry rsp points to argc, then argv (System V ABI, 3.4.1): UID is argv[1] at
    # [rsp+16], the GIDs argv[2], PATH argv[3], WORDS begin at argv[4] at [rsp+40].
    # r8 = the groups' list, r9d = their count: mov r8d, imm32; xor r9d, r9d
    made.add(b"\x41\xb8" + struct.pack("<I", elf.ROOM) + b"\x45\x31\xc9")
    made.add(b"\x48\x8b\x74\x24\x18")  # mov rsi, [rsp+24]
    made.label("groups")
    _number(made, "group")
    # cmp r9d, MAX_GROUPS; jae fail; mov [r8+r9*4], eax; inc r9d
    made.add(b"\x41\x81\xf9" + struct.pack("<I", MAX_GROUPS)).jump("jae", "fail")
    made.add(b"\x43\x89\x04\x88" + b"\x41\xff\xc1")
    # What ended the number: a comma is skipped, and more comes. cmp byte [rsi], ','; jne
    made.add(b"\x80\x3e\x2c").jump("jne", "given").add(b"\x48\xff\xc6").jump("jmp", "groups")
    made.label("given")
    # mov edi, r9d; then rsi = the list
    made.add(b"\x44\x89\xcf", system_call(SETGROUPS, esi=elf.ROOM))
    _unless_zero(made)
    made.add(b"\x8b\x3c\x25" + struct.pack("<I", elf.ROOM), system_call(SETGID))
    _unless_zero(made)
    made.add(b"\x48\x8b\x74\x24\x10")  # mov rsi, [rsp+16]
    _number(made, "user")
    made.add(b"\x89\xc7", system_call(SETUID))  # mov edi, eax
    _unless_zero(made)
    # rdi = PATH; rsi = WORDS; rdx = the environment, at rsp + 8 * argc + 16:
    # mov rdi, [rsp+32]; lea rsi, [rsp+40]; mov rax, [rsp]; lea rdx, [rsp+rax*8+16]
    made.add(b"\x48\x8b\x7c\x24\x20" + b"\x48\x8d\x74\x24\x28")
    made.add(b"\x48\x8b\x04\x24" + b"\x48\x8d\x54\xc4\x10", system_call(EXECVE))
    made.add(b"\x48\x83\xf8" + struct.pack("<b", -ENOEXEC)).jump("jne", "fail")
    # For the shell: "sh" in PATH's place, PATH in that of the first word.
    # mov rax, [rsp+32]; mov [rsp+40], rax; mov qword [rsp+32], name; lea rsi, [rsp+32]
    made.add(b"\x48\x8b\x44\x24\x20" + b"\x48\x89\x44\x24\x28")
    made.add(b"\x48\xc7\x44\x24\x20" + struct.pack("<I", data + len(_SHELL)))
    made.add(b"\x48\x8d\x74\x24\x20")
    made.add(b"\x48\x8b\x04\x24" + b"\x48\x8d\x54\xc4\x10", system_call(EXECVE, edi=data))
    made.label("fail").add(system_call(EXIT, edi=CANNOT_RUN))
    return made.build()


def _number(made: Code, name: str) -> None:
    """Append code that reads the decimal number at rsi into eax; rsi is left behind it."""
    made.add(b"\x31\xc0").label(name)  # xor eax, eax
    # movzx ecx, byte [rsi]; sub ecx, '0'; cmp ecx, 10; jae behind
    made.add(b"\x0f\xb6\x0e" + b"\x83\xe9\x30" + b"\x83\xf9\x0a").jump("jae", f"{name} read")
    # lea eax, [rax+rax*4]; lea eax, [rcx+rax*2]; inc rsi
    made.add(b"\x8d\x04\x80" + b"\x8d\x04\x41" + b"\x48\xff\xc6").jump("jmp", name)
    made.label(f"{name} read")


def _unless_zero(made: Code) -> None:
    """Append code that goes to "fail" unless the last call returned 0."""
    made.add(b"\x85\xc0").jump("jne", "fail")  # test eax, eax


def build() -> bytes:
    """Return the whole program as an ELF file."""
    start = elf.body_address() + len(DATA)
    return elf.program(DATA + code(elf.body_address()), start)
