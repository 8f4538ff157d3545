"""Ports that native code serves without leaving for Python: a machine's table of them.

Writes to *gathered* ports wait in a ring, of which Python passes on what is there whenever
native code comes back, and at the latest when a slice of instructions is over. Bytes read at
*shadowed* ports are answered with what Python last put there. The engine's side is
`ringzero.engine.soft.ports`.
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
# Of an entry of the ring: where width and value lie; the port is in the lowest bits.
WIDTH_SHIFT, VALUE_SHIFT = 16, 32
# The bit of `shadow` that says that the lowest byte is what reads give.
KNOWN = 1 << 8


class PortTable(Struct):
    """One machine's, shared by its vCPUs."""

    lock = field(u32)  # 1 while a vCPU enters a write
    written = field(u32)  # writes ever entered, and of them those passed on; both wrap
    taken = field(u32)
    gathered = field(u32)
    first = field(u32, GATHERED)
    last = field(u32, GATHERED)
    shadowed = field(u32)
    port = field(u32, SHADOWED)
    shadow = field(u32, SHADOWED)
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
            return _enter(cpu, port, width, value)
    return u32(0)


@native(inline="never")
def _enter(cpu: Cpu, port: u32, width: u32, value: u64) -> u32:
    table = pointer(PortTable, cpu.ports)
    lock = address_of(table) + PortTable.offset_of("lock")
    if compare_exchange(u32, lock, u32(0), u32(1)) != 0:
        return u32(0)
    at = table.written
    room = at - table.taken < RING
    if room:
        entry = u64(port) | u64(width) << WIDTH_SHIFT | value << VALUE_SHIFT
        table.ring[at & (RING - 1)] = entry
        fetch("add", u32, address_of(table) + PortTable.offset_of("written"), u32(1))
    fetch("xchg", u32, lock, u32(0))
    return u32(room)


@native(inline="never")
def shadow_of(cpu: Cpu, port: u32, width: u32) -> u32:
    """Return what a read of one byte gives, with KNOWN; 0 when it must leave the guest."""
    if cpu.ports == 0 or cpu.external_done != 0 or width != 1:
        return u32(0)
    table = pointer(PortTable, cpu.ports)
    for i in range(u64(table.shadowed)):
        if port == table.port[i]:
            return table.shadow[i]
    return u32(0)


@staged
def writes_wait(cpu: Any) -> Any:
    """Return whether gathered writes are to be passed on."""
    waiting = u32(0)
    if cpu.ports != 0:
        table = pointer(PortTable, cpu.ports)
        waiting = table.written - table.taken
    return waiting != 0
