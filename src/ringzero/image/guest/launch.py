"""The program in ringzero's own guests that starts a command with a clean state.

A shell that runs something beside itself has it ignore SIGINT and SIGQUIT, and no shell can
take that back. So this: a Linux program for x86-64 that is nothing but a list of system calls.

    launch PATH WORDS...        run the program PATH with the argument vector WORDS

The program finds every signal at its default action and none blocked, the umask 022, and
itself the leader of a session of its own; a terminal on its standard input is its controlling
terminal. A file that is no program is a script for /bin/sh, as
execvp(3) has it. Exit status 126 when it cannot be run at all.
"""

from __future__ import annotations

import struct

from ringzero.image.guest import elf
from ringzero.image.guest.code import system_call

# System calls of x86-64 Linux (arch/x86/entry/syscalls/syscall_64.tbl).
RT_SIGACTION, RT_SIGPROCMASK, IOCTL, EXECVE, EXIT, UMASK, SETSID = 13, 14, 16, 59, 60, 95, 112
SIG_SETMASK = 2
# The size of a signal set in bytes, and the signals that have an action: 1 to 64.
SET_SIZE, SIGNALS = 8, 64
# ioctl_tty(2): become the controlling terminal, of a session leader that has none.
TIOCSCTTY = 0x540E
# Of another session, which root may: what is left of one keeps nobody from the console.
STEAL = 1
UMASK_VALUE = 0o022
CANNOT_RUN = 126
# errno(3): a file of no format that the kernel runs.
ENOEXEC = 8

_SHELL, _SHELL_NAME = b"/bin/sh\0", b"sh\0"
# struct sigaction of the system call: handler (SIG_DFL), flags, restorer, mask; all zero, and
# an empty signal set as well.
_ZEROS = bytes(8 + 8 + 8 + SET_SIZE)


def code(data: int) -> bytes:
    """Return the program's code, whose data (`DATA`) lies at the address `data`."""
    zeros, shell, name = data, data + len(_ZEROS), data + len(_ZEROS) + len(_SHELL)
    # r12d counts the signals down: mov r12d, imm32; L: mov edi, r12d; ...; dec r12d; jnz L.
    action = system_call(RT_SIGACTION, esi=zeros, edx=0, r10d=SET_SIZE)
    again = b"\x44\x89\xe7" + action + b"\x41\xff\xcc"
    loop = b"\x41\xbc" + struct.pack("<I", SIGNALS) + again
    loop += b"\x75" + struct.pack("<b", -(len(again) + 2))
    # At the entry rsp points to argc, then argv (System V ABI, 3.4.1): PATH is argv[1], WORDS
    # begin at argv[2], the environment behind argv's end.
    # rdi = [rsp+16]; rsi = rsp+24; rdx = rsp + 8 * argc + 16
    vectors = b"\x48\x8b\x7c\x24\x10" + b"\x48\x8d\x74\x24\x18"
    vectors += b"\x48\x8b\x04\x24" + b"\x48\x8d\x54\xc4\x10"
    # For the shell: argv[1] = "sh", argv[2] = PATH, and the vector from argv[1] on.
    # mov rax, [rsp+16]; mov [rsp+24], rax; mov qword [rsp+16], name; lea rsi, [rsp+16]
    script = b"\x48\x8b\x44\x24\x10" + b"\x48\x89\x44\x24\x18"
    script += b"\x48\xc7\x44\x24\x10" + struct.pack("<I", name) + b"\x48\x8d\x74\x24\x10"
    # mov rax, [rsp]; lea rdx, [rsp + 8 * rax + 16]
    script += b"\x48\x8b\x04\x24" + b"\x48\x8d\x54\xc4\x10"
    run = system_call(EXECVE)
    # cmp rax, -ENOEXEC; jne behind the shell's call
    shell_call = script + system_call(EXECVE, edi=shell)
    unless_script = b"\x48\x83\xf8" + struct.pack("<b", -ENOEXEC)
    unless_script += b"\x75" + struct.pack("<b", len(shell_call))
    return (
        loop
        + system_call(RT_SIGPROCMASK, edi=SIG_SETMASK, esi=zeros, edx=0, r10d=SET_SIZE)
        + system_call(UMASK, edi=UMASK_VALUE)
        + system_call(SETSID)
        + system_call(IOCTL, edi=0, esi=TIOCSCTTY, edx=STEAL)
        + vectors
        + run
        + unless_script
        + shell_call
        + system_call(EXIT, edi=CANNOT_RUN)
    )


DATA = _ZEROS + _SHELL + _SHELL_NAME


def build() -> bytes:
    """Return the whole program as an ELF file."""
    start = elf.body_address() + len(DATA)
    return elf.program(DATA + code(elf.body_address()), start)
