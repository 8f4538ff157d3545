"""The local APIC in native code: what a guest does to it at every tick, interrupt and IPI.

Priorities, EOI, the timer, interrupts between the vCPUs of a machine, waiting in HLT. What
is rare (other registers, INIT, STARTUP, NMI and lowest-priority messages, the end of
level-triggered interrupts, whatever is an error) goes to the device, in Python, which works
on the same registers (`isa.x86.apic`). Sections are of Intel SDM vol. 3A, chapter 11.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.exclusive import RUNNING, pause, sleep_while, wake
from ringzero.isa.execution import NEVER, REQUEST_INTERRUPT, REQUEST_KICK
from ringzero.isa.x86.apic import (
    APIC_PAGE,
    BASE_ENABLE,
    BASE_X2APIC,
    BROADCAST_X2APIC,
    BROADCAST_XAPIC,
    EOI,
    EOI_FLAG_ENABLE,
    ERROR_RECEIVE_VECTOR,
    FIRST_VECTOR,
    IA32_TSC_DEADLINE,
    ICR_HIGH,
    ICR_LOGICAL,
    ICR_LOW,
    ICR_MODE,
    ICR_SHORTHAND_SHIFT,
    ICR_WRITABLE,
    ID,
    LVT_ERROR,
    LVT_MASKED,
    LVT_TIMER,
    MSR_X2APIC_FIRST,
    SELF_IPI,
    SVR_ENABLE,
    TIMER_DEADLINE,
    TIMER_ENTRY,
    TIMER_INITIAL,
    TIMER_MODE,
    TIMER_PERIODIC,
    TIMER_WRITABLE,
    TO_ALL,
    TO_DESTINATION,
    TO_SELF,
    TPR,
    VECTOR_WORDS,
    ApicRegisters,
)
from ringzero.isa.x86.cpu import IDLE_WALKS, IF, LONGEST_SLEEP, REQUEST_NMI, Cpu
from ringzero.isa.x86.privileged.exclusive import enter_guest, leave_guest, shared_of
from ringzero.isa.x86.privileged.ram import host_address, store_host
from ringzero.native import (
    address_of,
    fetch,
    i64,
    leading_zeros,
    load,
    native,
    pointer,
    read_host_tsc,
    select,
    staged,
    u8,
    u32,
    u64,
    u128,
)

_APIC = Cpu.offset_of("apic")
_ISR, _IRR, _TMR = (_APIC + ApicRegisters.offset_of(name) for name in ("isr", "irr", "tmr"))
_REQUESTS, _SLEEPING = Cpu.offset_of("requests"), Cpu.offset_of("sleeping")
_MASK_32 = 0xFFFF_FFFF
# Words of a bank, the highest vectors first.
_DOWNWARDS = tuple(reversed(range(VECTOR_WORDS)))
# A vCPU that slept for less than MOST_POLLED nanoseconds before something came looks out for
# that a while before it sleeps again, as KVM's halt_poll_ns has it: for FIRST_POLLED at first,
# then for twice as long each time. For a guest's only vCPU `Cpu.most_polled_alone` is the bound.
FIRST_POLLED, MOST_POLLED = 5_000, 50_000
_SECOND = 1_000_000_000
# Up to so many nanoseconds it sleeps until its timer is due. When that is further away it wakes
# with an eighth of the time left: the host's clock, by which it sleeps, is not the guest's counter.
_EXACT_SLEEP = _SECOND
# And those after its last work at which it gives the memory of its tables back, where it does that
# (`Cpu.rests_from`): who asks an idle guest something every second finds them filled.
REST_AFTER = 2_000_000_000
# One that has rested, and only woke for a moment since, rests again when a single sleep has lasted
# so long, or soon where its timer says that it will. What wakes it more often finds its tables
# filled, as that costs several times as much as its work: Linux's watchdog of an interface's queue
# comes every five seconds, its hwrng more and more seldom, until it comes once a minute.
REST_AGAIN = 6_000_000_000
REST_SOON = 1_000_000_000


# --- telling a vCPU ------------------------------------------------------------


@native
def notify(cpu: Cpu, bits: u32) -> None:
    """Set bits of a vCPU's requests and wake it where it sleeps; from any thread.

    One that runs is called out of translated code by a TLB that never matches, which its next
    access to memory finds (`runtime.slow_step`). Should it choose another itself at that
    moment, it looks when its slice ends.
    """
    where = address_of(cpu) + _REQUESTS
    fetch("or", u32, where, bits)
    if cpu.sleeping != 0:
        wake(where, u32(1))
    elif cpu.whereabouts == RUNNING:
        cpu.tlb = cpu.tlb_checked


# --- vectors -------------------------------------------------------------------


@staged
def _bit(vector: Any) -> Any:
    return u64(1) << u64(vector & 63)


@staged
def _word(cpu: Any, bank: int, vector: Any) -> Any:
    """Return the host address of the word of a bank that holds `vector`."""
    return address_of(cpu) + bank + u64((vector >> 6) << 3)


@native(inline="never")
def highest(where: u64) -> u32:
    """Return the highest vector in the bank at a host address, plus 1; 0: there is none."""
    for word in _DOWNWARDS:
        bits = load(u64, where, 8 * word)
        if bits != 0:
            return u32(64 * (word + 1)) - u32(leading_zeros(bits))
    return u32(0)


@native
def pending(cpu: Cpu) -> u32:
    """Return the vector, plus 1, of the interrupt that the processor may take (11.8.3); or 0."""
    apic = cpu.apic
    found = highest(address_of(cpu) + _IRR)
    if found == 0 or apic.svr & SVR_ENABLE == 0:
        return u32(0)
    priority = apic.tpr & 0xF0
    served = highest(address_of(cpu) + _ISR)
    if served != 0 and (served - 1) & 0xF0 > priority:
        priority = (served - 1) & 0xF0
    if (found - 1) & 0xF0 > priority:
        return found
    return u32(0)


@native(inline="never")
def acknowledge(cpu: Cpu) -> u32:
    """Move the interrupt that the processor takes into service; its vector plus 1, or 0.

    The request for it is set anew where another one may be taken too.
    """
    fetch("and", u32, address_of(cpu) + _REQUESTS, u32(~REQUEST_INTERRUPT & _MASK_32))
    settle_eoi(cpu)
    taken = pending(cpu)
    if taken != 0:
        vector = taken - 1
        fetch("and", u64, _word(cpu, _IRR, vector), ~_bit(vector))
        apic = cpu.apic
        nested = highest(address_of(cpu) + _ISR) != 0
        apic.isr[vector >> 6] = apic.isr[vector >> 6] | _bit(vector)
        if not nested:
            _offer_eoi(cpu, vector)
        _look_again(cpu)
    return taken


@native
def _look_again(cpu: Cpu) -> None:
    """Have the vCPU, on whose thread this is, look whether it may take an interrupt now."""
    if pending(cpu) != 0:
        fetch("or", u32, address_of(cpu) + _REQUESTS, u32(REQUEST_INTERRUPT))
        cpu.stop_block = 1


@native(inline="never")
def _enter(cpu: Cpu, vector: u32, level: u32) -> None:
    where = _word(cpu, _TMR, vector)
    if level != 0:
        fetch("or", u64, where, _bit(vector))
    elif load(u64, where) & _bit(vector) != 0:
        fetch("and", u64, where, ~_bit(vector))
    fetch("or", u64, _word(cpu, _IRR, vector), _bit(vector))


@native(inline="never")
def post(cpu: Cpu, vector: u32, level: u32) -> None:
    """Have a vCPU take a fixed interrupt; from any thread (11.8.4).

    One whose vector is no interrupt's is an error of its receiver's (11.5.3).
    """
    apic = cpu.apic
    if apic.base & BASE_ENABLE == 0 or apic.svr & SVR_ENABLE == 0:
        return
    if vector < FIRST_VECTOR:
        apic.errors = apic.errors | ERROR_RECEIVE_VECTOR
        entry = apic.lvt[LVT_ERROR]
        if entry & LVT_MASKED != 0 or entry & 0xFF < FIRST_VECTOR:
            return
        fetch("or", u64, _word(cpu, _IRR, entry & 0xFF), _bit(entry & 0xFF))
    else:
        _enter(cpu, vector, level)
    notify(cpu, u32(REQUEST_INTERRUPT))


@native(inline="never")
def end_of_interrupt(cpu: Cpu) -> u32:
    """Take a write of EOI (11.8.5); 0 when others are to be told, as of level-triggered ones."""
    settle_eoi(cpu)
    apic = cpu.apic
    served = highest(address_of(cpu) + _ISR)
    if served != 0:
        vector = served - 1
        if apic.tmr[vector >> 6] & _bit(vector) != 0:
            return u32(0)
        apic.isr[vector >> 6] = apic.isr[vector >> 6] & ~_bit(vector)
        _look_again(cpu)
    return u32(1)


# --- the guest's own end of interrupts --------------------------------------------
#
# A guest that has asked for it gives four bytes of its memory for each vCPU. What is 1 there while
# an interrupt is in service it clears instead of a write of EOI. Nobody is told: so that is offered
# only where nothing waits for the end, and taken back before anybody looks at what is in service.


@native(inline="never")
def _offer_eoi(cpu: Cpu, vector: u32) -> None:
    """Let the guest end the only interrupt in service by its flag, where nothing waits for it.

    An interrupt that is requested from now on has the vCPU come by, which takes it back.
    """
    apic = cpu.apic
    level = apic.tmr[vector >> 6] & _bit(vector)
    if apic.eoi_flag & EOI_FLAG_ENABLE == 0 or level != 0:
        return
    if highest(address_of(cpu) + _IRR) != 0:
        return
    host = host_address(cpu, apic.eoi_flag & ~u64(EOI_FLAG_ENABLE))
    if host != 0:
        store_host(cpu, host, u64(1), u64(1))
        apic.eoi_offered = 1


@native(inline="never")
def settle_eoi(cpu: Cpu) -> None:
    """Take back what `_offer_eoi` offered; where the guest has made use of it, end the interrupt.

    On the vCPU's thread, outside of instructions that look at the flag.
    """
    apic = cpu.apic
    if apic.eoi_offered == 0:
        return
    apic.eoi_offered = 0
    host = host_address(cpu, apic.eoi_flag & ~u64(EOI_FLAG_ENABLE))
    if apic.eoi_flag & EOI_FLAG_ENABLE == 0 or host == 0:
        return
    if load(u8, host) & 1 != 0:
        store_host(cpu, host, u64(0), u64(1))
        return
    served = highest(address_of(cpu) + _ISR)
    if served != 0:
        vector = served - 1
        apic.isr[vector >> 6] = apic.isr[vector >> 6] & ~_bit(vector)


@native
def take_nmi(cpu: Cpu) -> u32:
    """Return whether a non-maskable interrupt waits, and take it."""
    fetch("and", u32, address_of(cpu) + _REQUESTS, u32(~REQUEST_NMI & _MASK_32))
    where = address_of(cpu) + _APIC + ApicRegisters.offset_of("nmi")
    return u32(fetch("xchg", u32, where, u32(0)))


# --- the timer -----------------------------------------------------------------


@staged
def _ticks(apic: Any, count: Any) -> Any:
    """Return `count` of the timer in ticks of the guest's counter; at least 1 (11.5.4)."""
    code = (apic.timer_divide & 3) | ((apic.timer_divide >> 1) & 4)
    divided = u64(count) << u64((code + 1) & 7)
    ticks = u64((u128(divided) * u128(apic.scale)) >> 32)
    return ticks + u64(ticks == 0)


@native(inline="never")
def expire(cpu: Cpu) -> None:
    """Let the timer act, whose deadline has come."""
    apic = cpu.apic
    entry = apic.lvt[LVT_TIMER]
    deadline = cpu.deadline
    cpu.deadline = NEVER
    if entry & TIMER_MODE == TIMER_PERIODIC and apic.timer_initial != 0:
        period = _ticks(apic, apic.timer_initial)
        # Periods that were missed as a whole are lost, as in hardware.
        missed = (read_host_tsc() + cpu.counter_offset - deadline) // period
        cpu.deadline = deadline + (missed + 1) * period
    if entry & LVT_MASKED == 0:
        post(cpu, entry & 0xFF, u32(0))


@staged
def _start_timer(cpu: Any, count: Any) -> None:
    apic = cpu.apic
    if apic.lvt[LVT_TIMER] & TIMER_MODE != TIMER_DEADLINE:
        apic.timer_initial = count
        cpu.deadline = NEVER
        if count != 0:
            cpu.deadline = read_host_tsc() + cpu.counter_offset + _ticks(apic, count)


@staged
def _set_timer_entry(cpu: Any, value: Any) -> None:
    """Write the timer's entry; to or from TSC-deadline mode disarms it (11.5.4.1)."""
    apic = cpu.apic
    entry = u32(value) & TIMER_WRITABLE
    if apic.svr & SVR_ENABLE == 0:
        entry = entry | LVT_MASKED
    old, new = apic.lvt[LVT_TIMER] & TIMER_MODE, entry & TIMER_MODE
    if old != new and u32(old == TIMER_DEADLINE) | u32(new == TIMER_DEADLINE) != 0:
        cpu.deadline = NEVER
        apic.timer_initial = 0
    apic.lvt[LVT_TIMER] = entry


@staged
def _set_deadline(cpu: Any, value: Any) -> None:
    if cpu.apic.lvt[LVT_TIMER] & TIMER_MODE == TIMER_DEADLINE:
        cpu.deadline = value
        if value == 0:
            cpu.deadline = NEVER


# --- interrupts to other vCPUs ---------------------------------------------------


@native
def _in_logical(cpu: Cpu, destination: u32) -> u32:
    """Return whether a logical destination names a vCPU (11.6.2.2, 11.12.10)."""
    apic = cpu.apic
    named = u32(0)
    if apic.base & BASE_X2APIC != 0:
        if destination >> 16 == apic.apic_id >> 4:
            named = destination & (u32(1) << (apic.apic_id & 0xF)) & 0xFFFF
    else:
        own = apic.ldr >> 24
        if apic.dfr >> 28 == 0xF:
            named = destination & own & 0xFF
        elif destination >> 4 == own >> 4:
            named = destination & own & 0xF
    return u32(named != 0)


@native(inline="never")
def send(cpu: Cpu, command: u32, destination: u32, broadcast: u32) -> u32:
    """Carry out a write of the interrupt command (11.6.1); 0 when it is not a fixed interrupt."""
    vector = command & 0xFF
    if command & ICR_MODE != 0 or vector < FIRST_VECTOR:
        return u32(0)
    shorthand = (command >> ICR_SHORTHAND_SHIFT) & 3
    own = address_of(cpu)
    shared = shared_of(cpu)
    for number in range(u64(shared.count)):
        other = pointer(Cpu, u64(shared.cpus[number]))
        named = u32(0)
        if shorthand == TO_DESTINATION:
            if destination == broadcast:
                named = u32(1)
            elif command & ICR_LOGICAL != 0:
                named = _in_logical(other, destination)
            else:
                named = u32(other.apic.apic_id == destination)
        elif shorthand == TO_SELF:
            named = u32(address_of(other) == own)
        elif shorthand == TO_ALL:
            named = u32(1)
        else:
            named = u32(address_of(other) != own)
        if named != 0:
            post(other, vector, u32(0))
    cpu.count_ipis += 1
    cpu.stop_block = 1
    return u32(1)


# --- registers -------------------------------------------------------------------


@native(inline="never")
def set_task_priority(cpu: Cpu, value: u32) -> None:
    """Write the task-priority register."""
    settle_eoi(cpu)
    cpu.apic.tpr = value & 0xFF
    _look_again(cpu)


@native(inline="never")
def write_apic_msr(cpu: Cpu, index: u32, value: u64) -> u32:
    """Take a write of a register of the APIC's by its MSR (11.12.1); 0: it is the device's."""
    apic = cpu.apic
    # An instruction with an access that was answered runs again from its start.
    if apic.kept == 0 or cpu.external_done != 0:
        return u32(0)
    if index == IA32_TSC_DEADLINE:
        _set_deadline(cpu, value)
        return u32(1)
    if apic.base & BASE_X2APIC == 0:
        return u32(0)
    if index == MSR_X2APIC_FIRST + ICR_LOW:
        apic.icr = value & (_MASK_32 << 32 | ICR_WRITABLE)
        return send(cpu, u32(value), u32(value >> 32), u32(BROADCAST_X2APIC))
    if value >> 32 != 0:
        return u32(0)
    if index == MSR_X2APIC_FIRST + EOI:
        if value != 0:
            return u32(0)
        return end_of_interrupt(cpu)
    if index == MSR_X2APIC_FIRST + SELF_IPI:
        if value > 0xFF or value < FIRST_VECTOR:
            return u32(0)
        post(cpu, u32(value), u32(0))
        return u32(1)
    if index == MSR_X2APIC_FIRST + TPR:
        set_task_priority(cpu, u32(value))
        return u32(1)
    if index == MSR_X2APIC_FIRST + TIMER_INITIAL:
        _start_timer(cpu, u32(value))
        return u32(1)
    if index == MSR_X2APIC_FIRST + TIMER_ENTRY:
        _set_timer_entry(cpu, value)
        return u32(1)
    return u32(0)


@staged
def _maps(cpu: Any, physical: Any, size: Any) -> Any:
    """Return whether native code may serve an access to a register by its address (11.4.1)."""
    apic = cpu.apic
    here = physical & ~u64(0xFFF) == APIC_PAGE and physical & 0xF == 0 and size == 4
    mapped = apic.base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE
    return here and mapped and apic.kept != 0 and cpu.external_done == 0


@native(inline="never")
def write_apic(cpu: Cpu, physical: u64, size: u64, value: u64) -> u32:
    """Take a write of a register of the APIC's by its address; 0: it is the device's."""
    if not _maps(cpu, physical, size):
        return u32(0)
    apic = cpu.apic
    register = u32(physical & 0xFFF) >> 4
    if register == EOI:
        return end_of_interrupt(cpu)
    if register == ICR_LOW:
        apic.icr = (apic.icr & ~u64(_MASK_32)) | (value & ICR_WRITABLE)
        return send(cpu, u32(value), u32(apic.icr >> 56), u32(BROADCAST_XAPIC))
    if register == ICR_HIGH:
        apic.icr = (apic.icr & _MASK_32) | ((value & 0xFF00_0000) << 32)
        return u32(1)
    if register == TPR:
        set_task_priority(cpu, u32(value))
        return u32(1)
    if register == TIMER_INITIAL:
        _start_timer(cpu, u32(value))
        return u32(1)
    if register == TIMER_ENTRY:
        _set_timer_entry(cpu, value)
        return u32(1)
    return u32(0)


@native(inline="never")
def reads_apic(cpu: Cpu, physical: u64, size: u64) -> u32:
    """Return whether `read_apic` gives what a read at a physical address is to give."""
    if not _maps(cpu, physical, size):
        return u32(0)
    register = u32(physical & 0xFFF) >> 4
    return u32((register == ID) | (register == ICR_LOW) | (register == TPR))


@native(inline="never")
def read_apic(cpu: Cpu, physical: u64) -> u64:
    """Return a register of which `reads_apic` says that this does."""
    apic = cpu.apic
    register = u32(physical & 0xFFF) >> 4
    if register == ID:
        return u64(apic.apic_id & 0xFF) << 24
    if register == TPR:
        return u64(apic.tpr)
    return apic.icr & _MASK_32


# --- waiting ---------------------------------------------------------------------


@staged
def _until_deadline(cpu: Any) -> Any:
    """Return the nanoseconds until the timer fires, at most LONGEST_SLEEP's; 0: it is time."""
    left = u64(LONGEST_SLEEP * _SECOND)
    if cpu.deadline != NEVER:
        ticks = cpu.deadline - (read_host_tsc() + cpu.counter_offset)
        if i64(ticks) <= 0:
            left = u64(0)
        elif ticks < cpu.tick_limit:
            left = _nanoseconds(cpu, ticks)
    return left


@staged
def _nanoseconds(cpu: Any, ticks: Any) -> Any:
    return u64((u128(ticks) * u128(cpu.tick_nanoseconds)) >> 32)


@staged
def _timeout(cpu: Any, nanoseconds: Any) -> Any:
    """Return the host address of a timespec."""
    seconds = nanoseconds // u64(_SECOND)
    cpu.timespec[0] = seconds
    cpu.timespec[1] = nanoseconds - seconds * _SECOND
    return address_of(cpu) + Cpu.offset_of("timespec")


@native(inline="never")
def _poll(cpu: Cpu, awaited: u32) -> u32:
    """Look out for requests while that has paid; 1 when one came, or the timer is due."""
    begin = read_host_tsc()
    while _nanoseconds(cpu, read_host_tsc() - begin) < u64(cpu.polled):
        if cpu.requests & awaited != 0 or _until_deadline(cpu) == 0:
            return u32(1)
        pause()
    return u32(0)


@native(inline="never")
def await_interrupt(cpu: Cpu) -> None:
    """Let a halted vCPU's thread sleep until there is a request, or the timer is due.

    Without interrupts enabled it sleeps through those. One that has done no work for long leaves
    for Python once, to give back what memory it can.
    """
    awaited = u32(_MASK_32)
    if cpu.rflags & IF == 0:
        awaited = u32(~REQUEST_INTERRUPT & _MASK_32)
    cpu.count_halts += 1
    leave_guest(cpu)
    begin = read_host_tsc()
    if cpu.count_walks - cpu.walks_seen >= IDLE_WALKS:
        cpu.worked = begin
    cpu.walks_seen = cpu.count_walks
    if cpu.polled == 0 or _poll(cpu, awaited) == 0:
        where = address_of(cpu) + _REQUESTS
        # Whoever sets a request looks at this afterwards, and here it is the other way round.
        fetch("xchg", u32, address_of(cpu) + _SLEEPING, u32(1))
        while True:
            seen = u32(load(u32, where))
            left = _until_deadline(cpu)
            if seen & awaited != 0 or left == 0:
                break
            foreseen = left
            if left > _EXACT_SLEEP:
                left = left - (left >> 3)
            # Nothing was walked since the last rest where the two are equal.
            if cpu.count_walks + 2 * IDLE_WALKS > cpu.rests_from:
                again = cpu.count_walks < cpu.rests_from
                since = select(again, begin, cpu.worked)
                idle = _nanoseconds(cpu, read_host_tsc() - since)
                needed = u64(REST_AFTER)
                if again:
                    needed = u64(REST_AGAIN)
                    if idle + foreseen >= REST_AGAIN:
                        needed = u64(REST_SOON)
                if idle >= needed:
                    cpu.resting = 1
                    fetch("or", u32, where, u32(REQUEST_KICK))
                    break
                left = select(needed - idle < left, needed - idle, left)
            sleep_while(where, seen, _timeout(cpu, left))
        cpu.sleeping = 0
    slept = _nanoseconds(cpu, read_host_tsc() - begin)
    limit = u64(MOST_POLLED)
    if shared_of(cpu).count == 1:
        limit = u64(cpu.most_polled_alone)
    if slept > limit:
        cpu.polled = 0
    elif cpu.polled == 0:
        cpu.polled = FIRST_POLLED
    elif slept > u64(cpu.polled) and u64(cpu.polled) < limit:
        cpu.polled = cpu.polled * 2
    enter_guest(cpu)
