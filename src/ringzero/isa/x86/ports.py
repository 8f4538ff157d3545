"""Ports that native code serves without leaving for Python: a machine's table of them.

Writes to *gathered* ports wait in a ring, of which Python passes on what is there whenever
native code comes back, and at the latest when a slice of instructions is over. Bytes read at
*shadowed* ports are answered with what Python last put there; a read that changes the register
is entered into the ring, too, and a gathered write may change another register's shadow. The
engine's side is `ringzero.engine.soft.x86.ports`.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.x86.cpu import Cpu
from ringzero.native import (
    Struct,
    address_of,
    compare_exchange,
    fetch,
    field,
    native,
    pointer,
    staged,
    u32,
    u64,
)

# How many there can be of each; boards have one or two.
GATHERED, SHADOWED = 8, 8
# Writes that wait, a power of two: a kernel's line on a serial port has some hundred.
RING = 512
# Of an entry of the ring: where width and value lie, and the bit of one that is a read; the port
# is in the lowest bits.
WIDTH_SHIFT, READ_SHIFT, VALUE_SHIFT = 16, 24, 32
# Bits of `shadow`: the lowest byte is what reads give; the first read changes it to `following`.
# From VERSION_SHIFT on it counts what Python puts there, so that no change is taken for none.
KNOWN, ONCE, VERSION_SHIFT = 1 << 8, 1 << 9, 16


class PortTable(Struct):
    """One machine's, shared by its vCPUs."""

    lock = field(u32)  # 1 while a vCPU enters a write
    written = field(u32)  # writes ever entered, and of them those passed on; both wrap
    taken = field(u32)
    gathered = field(u32)
    first = field(u32, GATHERED)
    last = field(u32, GATHERED)
    # Of a register of which only those writes wait that clear these bits, or 0; and what it holds.
    clears = field(u32, GATHERED)
    held = field(u32, GATHERED)
    changes = field(u32, GATHERED)  # number of the shadow that a write changes, plus one; or 0
    shadowed = field(u32)
    port = field(u32, SHADOWED)
    shadow = field(u32, SHADOWED)
    following = field(u32, SHADOWED)  # what a shadow becomes, by ONCE or a clearing write
    ring = field(u64, RING)


@native(inline="never")
def gather(cpu: Cpu, port: u32, width: u32, value: u64) -> u32:
    """Enter a write into the ring; 0 when it must leave the guest as any other.

    So it must when the ring is full, another vCPU is at it, or the instruction has had an
    access answered, which runs it again from its start.
    """
    if cpu.ports == 0 or cpu.external_done != 0:
        return u32(0)
    table = pointer(PortTable, cpu.ports)
    for i in range(u64(table.gathered)):
        if port >= table.first[i] and port + width - 1 <= table.last[i]:
            return _gather_at(cpu, u32(i), port, width, value)
    return u32(0)


@native(inline="never")
def _gather_at(cpu: Cpu, i: u32, port: u32, width: u32, value: u64) -> u32:
    """Do as `gather` for the range of number `i`, which holds the port."""
    table = pointer(PortTable, cpu.ports)
    clears = table.clears[i]
    if clears != 0 and u32(value) != table.held[i] & ~clears:
        return u32(0)
    changed = table.changes[i]
    before = u32(0)
    if changed != 0:
        before = table.shadow[changed - 1]
    if _enter(cpu, u64(port) | u64(width) << WIDTH_SHIFT | value << VALUE_SHIFT) == 0:
        return u32(0)
    if clears != 0:
        table.held[i] = u32(value)
    if changed != 0:
        after = u32(0)
        if clears != 0:
            after = table.following[changed - 1]
        _change(cpu, changed - 1, before, after)
    return u32(1)


@native(inline="never")
def _change(cpu: Cpu, number: u32, before: u32, after: u32) -> None:
    """Have a shadow be `after`, unless Python has shown something since it was `before`."""
    table = pointer(PortTable, cpu.ports)
    place = address_of(table) + PortTable.offset_of("shadow") + 4 * u64(number)
    version = before >> VERSION_SHIFT << VERSION_SHIFT
    compare_exchange(u32, place, before, after | version)


@native(inline="never")
def _enter(cpu: Cpu, entry: u64) -> u32:
    """Put an entry into the ring; 0 where that cannot be."""
    table = pointer(PortTable, cpu.ports)
    lock = address_of(table) + PortTable.offset_of("lock")
    if compare_exchange(u32, lock, u32(0), u32(1)) != 0:
        return u32(0)
    at = table.written
    room = at - table.taken < RING
    if room:
        table.ring[at & (RING - 1)] = entry
        fetch("add", u32, address_of(table) + PortTable.offset_of("written"), u32(1))
    fetch("xchg", u32, lock, u32(0))
    return u32(room)


@native(inline="never")
def shadow_of(cpu: Cpu, port: u32, width: u32) -> u32:
    """Return what a read of one byte gives, with KNOWN; without, it must leave the guest."""
    if cpu.ports == 0 or cpu.external_done != 0 or width != 1:
        return u32(0)
    table = pointer(PortTable, cpu.ports)
    for i in range(u64(table.shadowed)):
        if port == table.port[i]:
            value = table.shadow[i]
            if value & ONCE != 0:
                entry = u64(port) | u64(1) << WIDTH_SHIFT | u64(1) << READ_SHIFT
                if _enter(cpu, entry | u64(value & 0xFF) << VALUE_SHIFT) == 0:
                    return u32(0)
                _change(cpu, u32(i), value, table.following[i])
            return value
    return u32(0)


@staged
def writes_wait(cpu: Any) -> Any:
    """Return whether gathered writes are to be passed on."""
    waiting = u32(0)
    if cpu.ports != 0:
        table = pointer(PortTable, cpu.ports)
        waiting = table.written - table.taken
    return waiting != 0
