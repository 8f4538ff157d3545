"""The program in ringzero's own guests that gives a copied machine its identity.

The kernels of Debian's cloud images have no driver for the VM generation
identifier, and a shell can make no ioctl. So this: a Linux program for x86-64
that is little but a list of system calls with constant arguments, made over
and over. It reads a record (`ringzero.image.guest.identity_record`) from standard input, hands
it to the kernel, and answers on standard output; standard error is the random
device. It holds one page of memory and sleeps until the next record comes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ringzero.image.guest import elf
from ringzero.image.guest import identity_record as identity
from ringzero.image.guest.code import Code, system_call
from ringzero.image.guest.elf import ROOM as RECORD
from ringzero.records import record

# System calls of x86-64 Linux (arch/x86/entry/syscalls/syscall_64.tbl).
READ, WRITE, CLOSE, IOCTL, SOCKET, EXIT, SETHOSTNAME, CLOCK_SETTIME = 0, 1, 3, 16, 41, 60, 170, 227
CLOCK_REALTIME = 0
_SECOND = 1_000_000_000
# How long setting the clock may take, in nanoseconds, before it is done again; so often at most.
_PROMPT, _CLOCK_TRIES = 300_000, 8
# random(4): mix in a rand_pool_info and credit it; take new keys from the pool at once.
RNDADDENTROPY, RNDRESEEDCRNG = 0x4008_5203, 0x5207
# socket(2): any socket takes the ioctls of network interfaces (netdevice(7)).
AF_UNIX, SOCK_DGRAM, SIOCSIFHWADDR = 1, 2, 0x8924
# Descriptors: the first free one is the socket's.
PORT, CONTROL, RANDOM, INTERFACES = 0, 1, 2, 3


@record
class Field:
    """An argument that is read from memory, 32 bits at `address`."""

    address: int


@record
class Call:
    """One system call; with `result`, the program ends unless the call returns that."""

    number: int
    arguments: tuple[int | Field, ...]
    result: int | None = None


def _set_clock() -> bytes:
    """Return code that sets the clock to the record's time, moved on by the counter.

    A host that is busy may take the CPU away between a look at the counter and the system call:
    where that took long, the clock is set once more. Nothing where the clock is to be left alone.
    """
    nanoseconds = RECORD + identity.TIME_OFFSET + 8

    def at(code: bytes, address: int) -> bytes:
        return code + struct.pack("<I", address)

    counter = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0"  # rdtsc; shl rdx, 32; or rax, rdx
    # From ticks to nanoseconds: mul qword [tick]; shrd rax, rdx, 32
    scaled = at(b"\x48\xf7\x24\x25", RECORD + identity.TICK_OFFSET) + b"\x48\x0f\xac\xd0\x20"
    code = Code()
    code.add(at(b"\x48\x83\x3c\x25", nanoseconds) + b"\0")  # cmp qword [nanoseconds], 0
    code.jump("jl", "end")
    code.add(at(b"\xbb", _CLOCK_TRIES))  # mov ebx, tries
    code.label("again").add(
        counter,
        b"\x48\x89\xc6",  # mov rsi, rax
        at(b"\x48\x2b\x04\x25", RECORD + identity.COUNTER_OFFSET),  # sub rax, [counter]
    )
    # One that stands before the record's is not the one that the host means.
    code.jump("jb", "set")
    code.add(
        at(b"\x48\x89\x34\x25", RECORD + identity.COUNTER_OFFSET),  # mov [counter], rsi
        scaled,
        at(b"\x48\x03\x04\x25", nanoseconds),  # add rax, [nanoseconds]
        b"\x31\xd2",  # xor edx, edx
        at(b"\xb9", _SECOND),  # mov ecx, 1000000000
        b"\x48\xf7\xf1",  # div rcx
        at(b"\x48\x01\x04\x25", RECORD + identity.TIME_OFFSET),  # add [seconds], rax
        at(b"\x48\x89\x14\x25", nanoseconds),  # mov [nanoseconds], rdx
    )
    code.label("set").add(
        system_call(CLOCK_SETTIME, edi=CLOCK_REALTIME, esi=RECORD + identity.TIME_OFFSET),
        counter,
        at(b"\x48\x2b\x04\x25", RECORD + identity.COUNTER_OFFSET),  # sub rax, [counter]
        scaled,
        at(b"\x48\x3d", _PROMPT),  # cmp rax, prompt
    )
    code.jump("jb", "end")
    code.add(b"\xff\xcb")  # dec ebx
    code.jump("jne", "again")
    return code.label("end").build()


# `mov r32, imm32` and `mov r32, [disp32]` for the registers of arguments in their order
# (System V ABI for x86-64, A.2.1): rdi, rsi, rdx.
_CONSTANT = (b"\xbf", b"\xbe", b"\xba")
_MEMORY = (b"\x8b\x3c\x25", b"\x8b\x34\x25", b"\x8b\x14\x25")
_MOV_EAX, _COMPARE_EAX, _JUMP_UNLESS_EQUAL, _JUMP = b"\xb8", b"\x3d", b"\x0f\x85", b"\xe9"
_SYSCALL = b"\x0f\x05"


def _emit(call: Call | bytes, where: int, leave: int) -> bytes:
    """Return the code of `call`, to lie at `where`; a wrong result jumps to `leave`."""
    if isinstance(call, bytes):
        return call
    code = b""
    for argument, constant, memory in zip(call.arguments, _CONSTANT, _MEMORY, strict=False):
        if isinstance(argument, Field):
            code += memory + struct.pack("<I", argument.address)
        else:
            code += constant + struct.pack("<I", argument)
    code += _MOV_EAX + struct.pack("<I", call.number) + _SYSCALL
    if call.result is not None:
        code += _COMPARE_EAX + struct.pack("<I", call.result)
        end = where + len(code) + len(_JUMP_UNLESS_EQUAL) + 4
        code += _JUMP_UNLESS_EQUAL + struct.pack("<i", leave - end)
    return code


def program(calls: Sequence[Call | bytes], base: int) -> bytes:
    """Return code for `base`: how to end with status 1, and behind it the calls, in a loop.

    Among them may be code that lies anywhere and leaves the stack alone.
    The loop begins at `entry_offset()`.
    """
    code = _emit(Call(EXIT, (1,)), base, base)
    for call in calls:
        code += _emit(call, base + len(code), base)
    return code + _JUMP + struct.pack("<i", entry_offset() - len(code) - len(_JUMP) - 4)


def entry_offset() -> int:
    """Return where in the code of `program` its loop begins."""
    return len(_emit(Call(EXIT, (1,)), 0, 0))


def data_address() -> int:
    """Return where the data of an `executable` lies."""
    return elf.body_address()


def build() -> bytes:
    """Return the whole program as an ELF file."""
    answer = data_address()
    calls: tuple[Call | bytes, ...] = (
        Call(READ, (PORT, RECORD, identity.RECORD_SIZE), result=identity.RECORD_SIZE),
        Call(IOCTL, (RANDOM, RNDADDENTROPY, RECORD + identity.ENTROPY_OFFSET)),
        Call(IOCTL, (RANDOM, RNDRESEEDCRNG, 0)),
        _set_clock(),
        Call(
            SETHOSTNAME,
            (RECORD + identity.NAME_OFFSET, Field(RECORD + identity.NAME_LENGTH_OFFSET)),
        ),
        # Drivers take another address while the interface is up; they say so to nobody.
        Call(SOCKET, (AF_UNIX, SOCK_DGRAM, 0)),
        *(
            Call(IOCTL, (INTERFACES, SIOCSIFHWADDR, RECORD + identity.INTERFACE_OFFSET + offset))
            for offset in range(
                0, identity.MAX_INTERFACES * identity.INTERFACE_SIZE, identity.INTERFACE_SIZE
            )
        ),
        Call(CLOSE, (INTERFACES,)),
        Call(WRITE, (CONTROL, answer, len(identity.ANSWER)), result=len(identity.ANSWER)),
    )
    return executable(calls, identity.ANSWER)


def executable(calls: Sequence[Call | bytes], data: bytes) -> bytes:
    """Return an ELF file that makes `calls` over and over; `data` lies at `data_address()`."""
    start = data_address() + len(data)
    return elf.program(data + program(calls, start), start + entry_offset())
