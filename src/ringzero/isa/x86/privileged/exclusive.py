"""The x86 vCPU's part in `isa.exclusive`: where it is, what it holds, whom it stops."""

from __future__ import annotations

from typing import Any

from ringzero.isa.exclusive import (
    EVERYBODY,
    LOCK,
    MACHINE,
    NOTHING,
    OUTSIDE,
    RUNNING,
    WAITING,
    Exclusive,
    acquire,
    await_change,
    release,
    try_acquire,
    wake,
)
from ringzero.isa.x86.cpu import Cpu
from ringzero.native import address_of, fetch, native, pointer, staged, u32, u64

_LOCK, _STOP = Exclusive.offset_of("lock"), Exclusive.offset_of("stop")
_WHEREABOUTS = Cpu.offset_of("whereabouts")


@staged
def shared_of(cpu: Any) -> Any:
    """Return the Exclusive of a vCPU's machine."""
    return pointer(Exclusive, cpu.exclusive)


@native
def announce(cpu: Cpu, whereabouts: u32) -> None:
    """Say where the vCPU is, to whoever waits for it to stop."""
    where = address_of(cpu) + _WHEREABOUTS
    fetch("xchg", u32, where, whereabouts)
    if shared_of(cpu).stop != 0:
        wake(where, u32(1))


@native
def enter_guest(cpu: Cpu) -> None:
    """Go into guest code, when nobody has stopped the machine."""
    while True:
        fetch("xchg", u32, address_of(cpu) + _WHEREABOUTS, u32(RUNNING))
        if shared_of(cpu).stop == 0:
            return
        announce(cpu, u32(OUTSIDE))
        await_change(cpu.exclusive + _STOP, u32(1))


@native
def leave_guest(cpu: Cpu) -> None:
    """Leave guest code; whatever the vCPU held it gave back."""
    announce(cpu, u32(OUTSIDE))


@native(inline="never")
def park(cpu: Cpu) -> None:
    """Stand still between two instructions until the machine goes on."""
    leave_guest(cpu)
    enter_guest(cpu)


# --- the lock ----------------------------------------------------------------


@native(inline="never")
def _wait_for_lock(cpu: Cpu, whereabouts: u32) -> None:
    announce(cpu, whereabouts)
    acquire(cpu.exclusive + _LOCK)
    # Nobody stops the machine but the lock's holder.
    announce(cpu, u32(RUNNING))
    # Blocks may be gone, the one that this vCPU is in too: it must look for them anew.
    cpu.link_site = 0
    cpu.stop_block = 1


@native
def lock_machine(cpu: Cpu, whereabouts: u32) -> None:
    """Take the machine's lock; others may do what they like while the vCPU waits for it.

    `whereabouts` is WAITING within an instruction, OUTSIDE between two: only then
    may the memory be used anew in which blocks and their records lie.
    """
    if try_acquire(cpu.exclusive + _LOCK) == 0:
        _wait_for_lock(cpu, whereabouts)
    cpu.held = LOCK


@native
def try_lock_machine(cpu: Cpu) -> u32:
    """Take the machine's lock when it is free; 1 when it was taken."""
    taken = try_acquire(cpu.exclusive + _LOCK)
    if taken != 0:
        cpu.held = LOCK
    return taken


@native
def unlock_machine(cpu: Cpu) -> None:
    """Give the machine's lock back."""
    cpu.held = NOTHING
    release(cpu.exclusive + _LOCK)


# --- everybody ---------------------------------------------------------------


@native(inline="never")
def await_stop(shared: Exclusive, own: u64) -> None:
    """Have all vCPUs stop but the one whose struct is at `own`; the lock is held."""
    fetch("xchg", u32, address_of(shared) + _STOP, u32(1))
    for number in range(u64(shared.count)):
        if shared.cpus[number] != own:
            # Whoever runs translated code leaves it at its next access, as for a request.
            other = pointer(Cpu, u64(shared.cpus[number]))
            other.tlb = other.tlb_checked
    for number in range(u64(shared.count)):
        if shared.cpus[number] != own:
            await_change(shared.cpus[number] + _WHEREABOUTS, u32(RUNNING))


@native(inline="never")
def end_stop(shared: Exclusive) -> None:
    """Let those that stopped go on."""
    where = address_of(shared) + _STOP
    fetch("xchg", u32, where, u32(0))
    wake(where, u32(EVERYBODY))


@native
def stop_others(cpu: Cpu) -> None:
    """Stop all other vCPUs; this one has the lock."""
    if shared_of(cpu).count > 1:
        await_stop(shared_of(cpu), address_of(cpu))
    cpu.held = MACHINE


@native
def resume_others(cpu: Cpu) -> None:
    """Let the other vCPUs go on; this one keeps the lock."""
    cpu.held = LOCK
    if shared_of(cpu).count > 1:
        end_stop(shared_of(cpu))


@native(inline="never")
def begin_exclusive(cpu: Cpu) -> None:
    """Be the only vCPU that runs, within an instruction."""
    lock_machine(cpu, u32(WAITING))
    stop_others(cpu)


@native(inline="never")
def end_exclusive(cpu: Cpu) -> None:
    """Give back all that the vCPU holds."""
    if cpu.held == MACHINE:
        resume_others(cpu)
    if cpu.held != NOTHING:
        unlock_machine(cpu)


@native(inline="never")
def stopped_within(cpu: Cpu) -> u32:
    """Return whether one of the others has stopped within an instruction."""
    found = u32(0)
    shared = shared_of(cpu)
    for number in range(u64(shared.count)):
        other = pointer(Cpu, u64(shared.cpus[number]))
        found = found | u32(other.whereabouts == WAITING)
    return found


# --- threads that are no vCPU's ----------------------------------------------


@native
def stop_machine(shared: Exclusive) -> None:
    """Take the lock and stop all vCPUs; for Python, on a thread that runs no guest code."""
    acquire(address_of(shared) + _LOCK)
    await_stop(shared, u64(0))


@native
def resume_machine(shared: Exclusive) -> None:
    """Let all vCPUs go on, and give the lock back."""
    end_stop(shared)
    release(address_of(shared) + _LOCK)
