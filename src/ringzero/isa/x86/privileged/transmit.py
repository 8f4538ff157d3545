"""What native code does with transmit queues that are lent to it (`ringzero.isa.x86.transmit`)."""

from __future__ import annotations

from ringzero.isa.exclusive import pause
from ringzero.isa.x86.cpu import Cpu
from ringzero.isa.x86.privileged.ram import host_address
from ringzero.isa.x86.transmit import (
    BUFFER,
    DRAINING,
    ENOUGH,
    KEPT,
    LENT,
    TransmitQueue,
    TransmitTable,
)
from ringzero.native import (
    address_of,
    boolean,
    compare_exchange,
    copy_memory,
    fence,
    fetch,
    load,
    native,
    pointer,
    select,
    store,
    u16,
    u32,
    u64,
)

# The access that notifies (virtio 1.2, 4.2.2.2).
_WIDTH = 4
_STATE, _WRITTEN, _BUFFER = (
    TransmitQueue.offset_of(name) for name in ("state", "written", "buffer")
)
# Offsets in the available and the used area, and what an entry of each has (2.7.6, 2.7.8).
_INDEX, _RING = 2, 4
# Members of a descriptor (2.7.5).
_LENGTH, _FLAGS = 8, 12


@native(inline="never")
def drain_notified(cpu: Cpu, physical: u64, size: u64, value: u64) -> u32:
    """Serve a driver's notification; 0: it must leave the guest as any other.

    So it must where Python has the queue or is to see to it, or the instruction has had an
    access answered, which runs it again from its start.
    """
    if cpu.transmit == 0 or size != _WIDTH or cpu.external_done != 0:
        return u32(0)
    table = pointer(TransmitTable, cpu.transmit)
    for i in range(u64(table.count)):
        queue = table.queues[i]
        if physical == queue.notify and u32(value) == queue.number:
            state = address_of(queue) + _STATE
            if compare_exchange(u32, state, u32(LENT), u32(DRAINING)) != LENT:
                return u32(0)
            done = u32(0)
            if not _has_code(cpu, queue):
                done = _drain(cpu, queue)
            if queue.written - queue.taken >= ENOUGH:
                table.enough = 1
            table.waiting = 1
            fetch("xchg", u32, state, u32(LENT))
            return done
    return u32(0)


@native(inline="never")
def reclaim(queue: TransmitQueue, wait: u32) -> u32:
    """Take a queue back for Python; 0 where a vCPU is at it and `wait` is 0. From any thread."""
    state = address_of(queue) + _STATE
    while True:
        seen = compare_exchange(u32, state, u32(LENT), u32(KEPT))
        if seen != DRAINING:
            return u32(1)
        if wait == 0:
            return u32(0)
        pause()


@native
def _code_of(cpu: Cpu, host: u64) -> u64:
    """Return what there is of translated code of the page at a host address, or 0."""
    return load(u64, cpu.code_pages + (((host - cpu.ram) >> 12) << 3))


@native
def _has_code(cpu: Cpu, queue: TransmitQueue) -> boolean:
    """Return whether the used area lies beside code, which must not change unseen.

    A page gets its first code only while this vCPU stands still, which it does not here.
    """
    last = queue.used + u64(queue.size * 8 + 5)
    return (_code_of(cpu, queue.used) | _code_of(cpu, last)) != 0


@native(inline="never")
def _drain(cpu: Cpu, queue: TransmitQueue) -> u32:
    """Copy all that is offered and ask for the next notification; 0: something is for Python."""
    while True:
        offered = u32(load(u16, queue.available, _INDEX))
        if (offered - queue.next_available) & 0xFFFF > queue.size:
            return u32(0)
        fence()
        while queue.next_available != offered:
            if _take(cpu, queue) == 0:
                return u32(0)
        if queue.event_idx != 0:
            store(u16, queue.used + u64(queue.size * 8) + _RING, u16(offered))
        fence()
        if u32(load(u16, queue.available, _INDEX)) == offered:
            return u32(1)


@native(inline="never")
def _take(cpu: Cpu, queue: TransmitQueue) -> u32:
    """Copy one request and give it back; 0 where it is not one buffer, or there is no room."""
    mask = queue.size - 1
    head = u32(load(u16, queue.available + u64((queue.next_available & mask) * 2), _RING))
    if head >= queue.size:
        return u32(0)
    descriptor = queue.descriptors + (u64(head) << 4)
    address = load(u64, descriptor)
    length = load(u32, descriptor, _LENGTH)
    written = queue.written
    room = BUFFER - (written - queue.taken)
    # An empty one would take no room, and so could come for ever.
    if load(u16, descriptor, _FLAGS) != 0 or length == 0 or length > room:
        return u32(0)
    host = host_address(cpu, address)
    if host == 0 or host_address(cpu, address + u64(length - 1)) != host + u64(length - 1):
        return u32(0)
    at = written & (BUFFER - 1)
    first = select(length < BUFFER - at, length, BUFFER - at)
    buffer = address_of(queue) + _BUFFER
    copy_memory(buffer + u64(at), host, u64(first))
    copy_memory(buffer, host + u64(first), u64(length - first))
    fetch("add", u32, address_of(queue) + _WRITTEN, length)
    element = queue.used + u64((queue.next_used & mask) * 8)
    store(u32, element, head, _RING)
    store(u32, element, u32(0), _RING + 4)
    queue.next_available = (queue.next_available + 1) & 0xFFFF
    queue.next_used = (queue.next_used + 1) & 0xFFFF
    # The element before the index that shows it.
    fence()
    store(u16, queue.used, u16(queue.next_used), _INDEX)
    return u32(1)
