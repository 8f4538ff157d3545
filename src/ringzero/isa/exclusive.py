"""One at a time: how the vCPUs of a machine stand still while one changes what all of them use.

Translated code, the tables that find it and the write protection of its pages belong to
all vCPUs, and are used without a lock. Who changes them holds the machine's lock, and
stops the others where what is changed may be in use. A vCPU stops between two
instructions of its run loop, or where it waits for the lock itself; outside of guest
code it has stopped already. Each has a word that says where it is, waited for with
Linux's futex. ISA-independent; a vCPU's part is in its ISA (isa.x86.privileged.exclusive).
"""

from __future__ import annotations

from typing import Any

from ringzero.native import (
    Struct,
    compare_exchange,
    fetch,
    field,
    host_asm,
    load,
    native,
    staged,
    u32,
    u64,
)

# Of one machine: as many as `--cpus` takes on the software engine.
MAX_VCPUS = 16
# States of the lock.
FREE, TAKEN, CONTENDED = range(3)
# Where a vCPU is: outside of guest code or between two instructions; in guest code;
# within an instruction, waiting for the lock.
OUTSIDE, RUNNING, WAITING = range(3)
# What a vCPU holds: nothing, the lock, the lock with all others stopped.
NOTHING, LOCK, MACHINE = range(3)
# Looks at a word before its waiter sleeps: some 10 us, which is less than a sleep costs.
SPINS = 400
# Linux's futex(2) on x86-64, for the threads of one process.
SYS_FUTEX = 202
FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE = 128, 129
EVERYBODY = 0x7FFFFFFF


class Exclusive(Struct):
    """What the vCPUs of a machine agree by."""

    lock = field(u32)
    stop = field(u32)  # 1 while everybody is to stop; only the lock's holder changes it
    count = field(u32)
    cpus = field(u64, MAX_VCPUS)  # host addresses of the vCPUs' structs


@staged
def _futex(where: Any, operation: int, value: Any, timeout: Any) -> None:
    host_asm(
        u64,
        "syscall",
        "={rax},{rax},{rdi},{rsi},{rdx},{r10},~{rcx},~{r11},~{memory},~{flags}",
        u64(SYS_FUTEX),
        where,
        u64(operation),
        u64(value),
        timeout,
    )


@staged
def pause() -> None:
    """Tell the host's processor that this is a loop which waits."""
    host_asm(None, "pause", "~{memory}")


@native(inline="never")
def sleep_while(where: u64, value: u32, timeout: u64) -> None:
    """Sleep while the word at a host address is `value`, until woken; may return early.

    `timeout` is 0, or the host address of a timespec: the longest time to sleep.
    """
    _futex(where, FUTEX_WAIT_PRIVATE, value, timeout)


@native(inline="never")
def wake(where: u64, count: u32) -> None:
    """Wake up to `count` that sleep on the word at a host address."""
    _futex(where, FUTEX_WAKE_PRIVATE, count, u64(0))


@native(inline="never")
def await_change(where: u64, value: u32) -> None:
    """Return when the word at a host address is not `value` any more."""
    spins = u32(SPINS)
    while spins != 0 and load(u32, where) == value:
        spins -= 1
        pause()
    while load(u32, where) == value:
        sleep_while(where, value, u64(0))


@native
def try_acquire(where: u64) -> u32:
    """Take the lock at a host address if it is free; 1 when it was taken."""
    return u32(compare_exchange(u32, where, u32(FREE), u32(TAKEN)) == FREE)


@native(inline="never")
def acquire(where: u64) -> None:
    """Take the lock at a host address, waiting for it."""
    spins = u32(SPINS)
    while spins != 0:
        if try_acquire(where) != 0:
            return
        spins -= 1
        pause()
    while fetch("xchg", u32, where, u32(CONTENDED)) != FREE:
        sleep_while(where, u32(CONTENDED), u64(0))


@native
def release(where: u64) -> None:
    """Give the lock at a host address back."""
    if fetch("xchg", u32, where, u32(FREE)) == CONTENDED:
        wake(where, u32(1))
