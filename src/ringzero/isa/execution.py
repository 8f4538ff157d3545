"""What native code has in common whatever it executes: why it returns, and the loop around steps.

A vCPU is a native struct, of a type that its ISA lays out. Members that the
engine reads and writes have the same names and types in all of them
(`MEMBERS`); so have exits that every ISA has. The staged functions here are
the parts of a run loop that know no ISA; each ISA makes native functions of
them, with its own struct and its own steps.
"""

from __future__ import annotations

from typing import Any

from ringzero.native import (
    NativeFunction,
    address_of,
    fetch,
    i64,
    long_jump,
    read_host_tsc,
    staged,
    u32,
    u64,
)
from ringzero.records import record

# Why native code returns to Python (`exit_kind`). Those of one ISA come after.
(
    EXIT_NONE,
    EXIT_MMIO_READ,
    EXIT_MMIO_WRITE,
    EXIT_HALT,
    EXIT_SHUTDOWN,
    EXIT_DEBUG,
    EXIT_REQUEST,
    EXIT_INTERRUPT,
    EXIT_TIMER,
    EXIT_OF_ISA,
) = range(10)

# Bits of `requests`, looked at when the budget is spent. Each has a byte of its own, because
# other threads set them from Python with plain byte stores. Byte 3 is the ISA's.
REQUEST_KICK = 1 << 0
REQUEST_INTERRUPT = 1 << 8
REQUEST_FLUSH = 1 << 16
REQUEST_OF_ISA = 1 << 24

# `leave_code`: what the run loop does after an instruction was abandoned.
LEAVE_FAULT, LEAVE_EXIT = 1, 2

# Bits of `single_step`, what the host's debugger asks for: stop at `breakpoints[n]` (bits
# 0-3), or at every instruction.
HOST_BREAKPOINTS = 4
HOST_STEP = 1 << HOST_BREAKPOINTS
# `reported` when the debugger has been told of no instruction.
NOT_REPORTED = (1 << 64) - 1
# `deadline` when the timer is not armed.
NEVER = (1 << 64) - 1

# Outside accesses that one instruction can make before it is complete (on x86 a 16-byte
# MMIO move takes two, MOVS from device to device two, FXSAVE to a device is refused).
EXTERNAL_LIMIT = 8

# Members that the struct of a vCPU has on every ISA, by their type; (type, count) for arrays.
MEMBERS: dict[str, Any] = {
    "index": u32,
    # Other threads' wishes, and the guest's counter at which the timer fires.
    "requests": u32,
    "deadline": u64,
    "counter_offset": u64,  # the guest's counter = the host's time-stamp counter + this
    "halted": u32,
    "inject": u32,  # number + 1 of an external interrupt that the next run delivers first
    # Instructions given to this slice, and left of it (signed).
    "slice": u64,
    "budget": u64,
    # An exit, and the accesses of this instruction that were answered already.
    "exit_kind": u32,
    "exit_width": u32,
    "exit_address": u64,
    "exit_value": u64,
    "external_done": u32,
    "external_cursor": u32,
    "external_values": (u64, EXTERNAL_LIMIT),
    "refuse": u32,  # the outside access ends in a fault
    # Where an abandoned instruction goes on (LLVM's setjmp convention), and how.
    "jump_buffer": (u64, 8),
    "leave_code": u32,
    # The host's debugger.
    "single_step": u32,
    "breakpoints": (u64, HOST_BREAKPOINTS),
    "reported": u64,  # address of the instruction that it was told of: it runs next, unreported
    # Statistics.
    "count_instructions": u64,
    "count_exits": u64,
    "count_interrupts": u64,
}


@record
class Execution:
    """What `jit.entry` puts around the run loops of an ISA.

    `cpu` is the vCPU's struct. `after_leave(cpu)` goes on after an instruction
    was abandoned, and returns 1 when the run must exit (`exit_kind` says why).
    `enter` and `leave` are called before and after guest code runs, for what
    the guest has in the host's registers (floating-point control).
    """

    cpu: Any
    after_leave: NativeFunction[Any, Any]
    enter: NativeFunction[Any, Any] | None = None
    leave: NativeFunction[Any, Any] | None = None


@staged
def abandon(cpu: Any, code: Any) -> None:
    """Abandon the instruction and go on in the run loop as `code` says."""
    cpu.leave_code = code
    long_jump(cpu.jump_buffer.address())


@staged
def ask_outside(
    cpu: Any, kind: Any, address: Any, width: Any, value: Any, refuse: Any, leave: Any
) -> Any:
    """Do an access that Python answers; return its result.

    The first time, the instruction is abandoned by `leave(cpu, code)` and the
    run loop exits with the access. Python answers, and the instruction is run
    again from its start: accesses that were answered are taken from
    `external_values`, in order. `refuse(cpu)` raises a fault for one too many.
    """
    cursor = cpu.external_cursor
    if cursor < cpu.external_done:
        cpu.external_cursor = cursor + 1
        return cpu.external_values[cursor]
    if cursor >= EXTERNAL_LIMIT:
        refuse(cpu)
    cpu.exit_kind = kind
    cpu.exit_address = address
    cpu.exit_width = width
    cpu.exit_value = value
    leave(cpu, LEAVE_EXIT)
    return u64(0)


@staged
def serve_requests(cpu: Any, flush: Any, accept: Any, here: Any, expire: Any = None) -> Any:
    """Serve requests, timer and interrupts; return why to exit to Python, or EXIT_NONE.

    `flush(cpu)` forgets translated addresses; `accept(cpu, requests)` returns
    the exit by which an interrupt is fetched that the vCPU takes now, or
    EXIT_NONE; `here(cpu)` is the address of the next instruction. `expire(cpu)`
    returns the exit by which the timer acts, or EXIT_NONE when it has; without
    it that is EXIT_TIMER.

    An instruction that the debugger was told of runs before an interrupt is taken: its handler
    would return to it, and the debugger be told of it twice.
    """
    cpu.count_instructions += cpu.slice - cpu.budget
    cpu.budget = cpu.slice
    requests = cpu.requests
    where = address_of(cpu) + cpu.kind.offset_of("requests")
    if (requests & REQUEST_FLUSH) != 0:
        fetch("and", u32, where, u32(~REQUEST_FLUSH & 0xFFFFFFFF))
        flush(cpu)
    if (requests & REQUEST_KICK) != 0:
        fetch("and", u32, where, u32(~REQUEST_KICK & 0xFFFFFFFF))
        return u32(EXIT_REQUEST)
    if i64(read_host_tsc() + cpu.counter_offset - cpu.deadline) >= 0 and cpu.deadline != NEVER:
        acted = expire(cpu) if expire is not None else u32(EXIT_TIMER)
        if acted != EXIT_NONE:
            return acted
    told = cpu.single_step != 0 and cpu.halted == 0 and cpu.reported == here(cpu)
    if not told:
        taken = accept(cpu, cpu.requests)
        if taken != EXIT_NONE:
            return taken
    if cpu.halted != 0:
        return u32(EXIT_HALT)
    return u32(EXIT_NONE)


@staged
def stops_at(cpu: Any, address: Any, resumed: Any = 0) -> Any:
    """Return whether the host's debugger is to be told of the instruction at `address` first.

    `resumed` is not 0 for one that has faulted and is run again: no breakpoint stops there.
    """
    if cpu.reported == address:
        cpu.reported = NOT_REPORTED
        return u64(0) != 0
    wanted = cpu.single_step & HOST_STEP
    for n in range(HOST_BREAKPOINTS):
        if cpu.breakpoints[n] == address and resumed == 0:
            wanted = wanted | (cpu.single_step & (1 << n))
    if wanted != 0:
        cpu.reported = address
        cpu.exit_address = address
    return wanted != 0


@staged
def run_steps(cpu: Any, begin: Any, attend: Any, stop: Any, step: Any) -> Any:
    """Run instruction after instruction until there is a reason to exit to Python, and return it.

    `begin(cpu)` does what Python asked for between two runs, `attend(cpu)` is
    made of `serve_requests`, `stop(cpu)` of `stops_at`; `step(cpu)` runs one
    instruction.
    """
    begin(cpu)
    while True:
        if cpu.requests != 0 or i64(cpu.budget) <= 0 or cpu.halted != 0:
            reason = attend(cpu)
            if reason != EXIT_NONE:
                return reason
        if cpu.single_step != 0 and stop(cpu):
            return u32(EXIT_DEBUG)
        step(cpu)
