"""The interpreter: fetch, decode, execute one instruction; and what happens between them.

`step` runs one instruction. `attend` looks after everything that is not an
instruction: requests of other threads, the timer, interrupts. `after_leave`
goes on after an instruction was abandoned (see faults.py).
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.execution import (
    EXIT_HALT,
    EXIT_INTERRUPT,
    EXIT_NONE,
    EXIT_SHUTDOWN,
    EXIT_TIMER,
    LEAVE_EXIT,
    REQUEST_INTERRUPT,
    run_steps,
    serve_requests,
    stops_at,
)
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.cpu import (
    CROSSINGS,
    EXIT_GATHERED,
    EXIT_NMI,
    FETCH_BYTES,
    MODE_64,
    REQUEST_NMI,
    UNKNOWN_KINDS,
    Cpu,
    Insn,
)
from ringzero.isa.x86.ports import writes_wait
from ringzero.isa.x86.privileged.alignment import select_tlb
from ringzero.isa.x86.privileged.apic import acknowledge, await_interrupt, expire, take_nmi
from ringzero.isa.x86.privileged.breakpoints import code_address
from ringzero.isa.x86.privileged.debug import begin_instruction, check_debug, debug_active
from ringzero.isa.x86.privileged.exceptions import deliver_fault, deliver_interrupt
from ringzero.isa.x86.privileged.exclusive import end_exclusive, park, shared_of
from ringzero.isa.x86.privileged.faults import leave, raise_gp0, raise_ud
from ringzero.isa.x86.privileged.lookaside import flush_tlb
from ringzero.isa.x86.privileged.mmu import fetch_page
from ringzero.isa.x86.table.decoder import DECODED, MAX_LENGTH, decode
from ringzero.isa.x86.transmit import output_waits
from ringzero.native import (
    address_of,
    boolean,
    call_address,
    copy_memory,
    load,
    native,
    pointer,
    read_host_tsc,
    select,
    staged,
    store,
    u8,
    u32,
    u64,
    v128,
)


@native(inline="never")
def fetch_decode(cpu: Cpu, insn: Insn, va: u64) -> None:
    """Decode the instruction at linear address `va`; raises its fetch and decode faults."""
    host = fetch_code(cpu, va)
    room = 0x1000 - (va & 0xFFF)
    # A copy, as other vCPUs may write to the page: no byte is looked at twice.
    buffer = cpu.fetch_buffer.address()
    if room >= FETCH_BYTES:
        for part in range(0, FETCH_BYTES, 16):
            store(v128, buffer, load(v128, host, part), part)
    else:
        for word in range(FETCH_BYTES // 8):
            store(u64, buffer, u64(0), word * 8)
        copy_memory(buffer, host, room)
        if room < MAX_LENGTH and known_crossing(cpu, insn, va, room) != 0:
            return
    status = decode(cpu, insn, buffer, cpu.mode)
    if u64(insn.length) > room:
        rest = fetch_code(cpu, va + room)
        copy_memory(buffer + room, rest, FETCH_BYTES - room)
        status = decode(cpu, insn, buffer, cpu.mode)
        if status == DECODED and insn.length <= MAX_LENGTH:
            note_crossing(cpu, insn, va)
    if insn.length > MAX_LENGTH:
        raise_gp0(cpu)
    if status != DECODED:
        note_unknown(cpu, buffer, u32(insn.length))
        raise_ud(cpu)


@staged
def crossing_of(cpu: Any, va: Any) -> Any:
    """Return the record for an instruction that reaches out of the page of `va`."""
    return cpu.crossings[(va >> 12) & (CROSSINGS - 1)]


@native(inline="never")
def known_crossing(cpu: Cpu, insn: Insn, va: u64, room: u64) -> u32:
    """Return 1, and the instruction at `va`, when it is that which was decoded there last.

    `Cpu.fetch_buffer` has its bytes in the first page, then zeros. Raises the faults of
    fetching the others, as soon as those are the same.
    """
    known = crossing_of(cpu, va)
    if known.address != va or known.mode != cpu.mode:
        return u32(0)
    buffer = cpu.fetch_buffer.address()
    code = known.code.address()
    for at in range(room):
        if load(u8, buffer + at) != load(u8, code + at):
            return u32(0)
    length = u64(known.insn.length)
    rest = fetch_code(cpu, va + room)
    copy_memory(buffer + room, rest, length - room)
    for word in range(MAX_LENGTH // 8 + 1):
        if load(u64, buffer, word * 8) != load(u64, code, word * 8):
            copy_memory(buffer + room, code + length, FETCH_BYTES - length)
            return u32(0)
    copy_memory(address_of(insn), address_of(known.insn), u64(Insn.size))
    return u32(1)


@native(inline="never")
def note_crossing(cpu: Cpu, insn: Insn, va: u64) -> None:
    """Keep a decoded instruction at `va`, whose bytes `Cpu.fetch_buffer` has."""
    known = crossing_of(cpu, va)
    known.address = va
    known.mode = cpu.mode
    code = known.code.address()
    length = u64(insn.length)
    for word in range(FETCH_BYTES // 8):
        store(u64, code, u64(0), word * 8)
    copy_memory(code, cpu.fetch_buffer.address(), length)
    copy_memory(address_of(known.insn), address_of(insn), u64(Insn.size))


@native(inline="never")
def note_unknown(cpu: Cpu, host: u64, length: u32) -> None:
    """Count an encoding that is no instruction, under its own bytes while there is room."""
    cpu.count_unknown += 1
    code = load(u64, host)
    if length < 8:
        code = code & ((u64(1) << (u64(length) * 8)) - 1)
    for n in range(u64(UNKNOWN_KINDS)):
        record = cpu.unknown[n]
        if record.length == 0:
            record.code = code
            record.length = length
        if record.length == length and record.code == code:
            record.count += 1
            return


@native
def fetch_code(cpu: Cpu, va: u64) -> u64:
    """Return the host address of code at `va`; code outside RAM shuts the machine down."""
    host = fetch_page(cpu, va)
    if host == 0:
        cpu.exit_kind = EXIT_SHUTDOWN
        leave(cpu, LEAVE_EXIT)
    return host


@native
def execute(cpu: Cpu, insn: Insn) -> None:
    """Run a decoded instruction at RIP and retire it."""
    following = cpu.rip + u64(insn.length)
    cpu.next_rip = select(cpu.mode == MODE_64, following, following & 0xFFFFFFFF)
    call_address(insn.handler, None, cpu, insn)
    cpu.rip = cpu.next_rip
    cpu.external_done = 0


@native(inline="never")
def step(cpu: Cpu) -> None:
    """Run the instruction at RIP."""
    cpu.external_cursor = 0
    shadow = cpu.shadow
    insn = pointer(Insn, address_of(cpu) + Cpu.offset_of("insn"))
    fetch_decode(cpu, insn, code_address(cpu))
    cpu.budget -= 1
    execute(cpu, insn)
    if shadow != 0:
        cpu.shadow = cpu.shadow & ~shadow


@native(inline="never")
def step_watched(cpu: Cpu) -> None:
    """Run the instruction at RIP with the guest's breakpoints and single-stepping looked after."""
    if begin_instruction(cpu) == 0:
        step(cpu)
        check_debug(cpu)


@native
def step_one(cpu: Cpu) -> None:
    """Run the instruction at RIP, whether or not the guest debugs."""
    if debug_active(cpu):
        step_watched(cpu)
    else:
        step(cpu)


@native(inline="never")
def stop_here(cpu: Cpu) -> boolean:
    """Return whether the host's debugger is to be told of the instruction at RIP first."""
    return stops_at(cpu, code_address(cpu), cpu.rflags & x86.RF)


@staged
def accept_interrupt(cpu: Any, requests: Any) -> Any:
    """Take an interrupt, or return the exit by which it is fetched; EXIT_NONE otherwise.

    Or that by which gathered writes and output are passed on.
    """
    waits = writes_wait(cpu) | output_waits(cpu)
    reason = select(waits, u32(EXIT_GATHERED), u32(EXIT_NONE))
    if (requests & REQUEST_NMI) != 0 and cpu.nmi_blocked == 0 and cpu.shadow == 0:
        if cpu.apic.kept == 0:
            return u32(EXIT_NMI)
        if reason == EXIT_NONE and take_nmi(cpu) != 0:
            inject(cpu, u32(x86.NMI))
    if (requests & REQUEST_INTERRUPT) != 0 and (cpu.rflags & x86.IF) != 0 and cpu.shadow == 0:
        if cpu.apic.kept == 0:
            return u32(EXIT_INTERRUPT)
        if reason == EXIT_NONE:
            taken = acknowledge(cpu)
            if taken != 0:
                inject(cpu, taken - 1)
    return reason


@staged
def expire_timer(cpu: Any) -> Any:
    """Let the timer act, or return the exit by which it does; EXIT_NONE otherwise."""
    if cpu.apic.kept == 0:
        return u32(EXIT_TIMER)
    expire(cpu)
    return u32(EXIT_NONE)


@native(inline="never")
def inject(cpu: Cpu, vector: u32) -> None:
    """Deliver an external interrupt, or an NMI."""
    cpu.halted = 0
    cpu.count_interrupts += 1
    deliver_interrupt(cpu, vector)


@native(inline="never")
def attend(cpu: Cpu) -> u32:
    """Serve requests, timer and interrupts; return why to exit to Python, or EXIT_NONE.

    Stands still first when another vCPU wants that, and waits while it is halted.
    """
    select_tlb(cpu)
    if shared_of(cpu).stop != 0:
        park(cpu)
    while True:
        reason = serve_requests(cpu, flush_tlb, accept_interrupt, code_address, expire_timer)
        if reason != EXIT_HALT or cpu.apic.kept == 0:
            return reason
        await_interrupt(cpu)


@native
def host_tsc(cpu: Cpu) -> u64:
    """Return the host's time-stamp counter (for Python, which cannot read it)."""
    return read_host_tsc()


@native
def interpret(cpu: Cpu) -> u32:
    """Run instruction after instruction until there is a reason to exit to Python."""
    return run_steps(cpu, begin, attend, stop_here, step_one)


@native
def begin(cpu: Cpu) -> None:
    """Do what Python asked for between two runs: finish an access, deliver an interrupt."""
    if cpu.refuse != 0:
        cpu.refuse = 0
        raise_gp0(cpu)
    if cpu.external_done != 0:
        # A delivery that reached for a device was abandoned; its instruction begins anew.
        cpu.delivering = 0
        step_one(cpu)
    if cpu.inject != 0:
        vector = cpu.inject - 1
        cpu.inject = 0
        inject(cpu, vector)


@native
def after_leave(cpu: Cpu) -> u32:
    """Go on after a long jump: 1 when the run must exit to Python (`exit_kind` says why)."""
    end_exclusive(cpu)
    if cpu.leave_code == LEAVE_EXIT:
        return u32(1)
    cpu.external_done = 0
    cpu.shadow = 0
    cpu.count_exceptions += 1
    deliver_fault(cpu)
    return u32(0)
