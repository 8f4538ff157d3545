"""Transmit virtqueues that native code drains, in memory that it shares with Python.

A driver that waits until its output was taken, as Linux's hvc console does for each piece of a
line, waits for the device's thread at every notification. Native code serves these without
leaving for Python while a queue is *lent* to it: `isa.x86.privileged.transmit`. What it copied
is passed on when a vCPU comes back to Python, at the latest some slices of instructions later.
The engine's side is `engine.soft.x86.transmit`.
"""

from __future__ import annotations

from typing import Any

from ringzero.native import Struct, field, pointer, staged, u8, u32, u64

# How many queues there can be; boards have one, the console's.
QUEUES = 2
# Bytes of output that wait, a power of two: Linux's hvc sends at most a page at once.
BUFFER = 32 << 10
# Output is passed on when so much of it waits, or when so many slices are over since it came:
# some hundred microseconds, much less than a batch of output waits for more anyway.
ENOUGH, SLICES = BUFFER // 2, 16
# Who has a queue: Python; native code; a vCPU that is at it now.
KEPT, LENT, DRAINING = range(3)


class TransmitQueue(Struct):
    """One queue. Who has it changes all but `written` and `taken`."""

    notify = field(u64)  # guest-physical address of the register for notifications
    descriptors = field(u64)  # host addresses of the three areas (virtio 1.2, 2.7)
    available = field(u64)
    used = field(u64)
    number = field(u32)  # what is written to `notify`
    state = field(u32)
    size = field(u32)
    event_idx = field(u32)
    next_available = field(u32)
    next_used = field(u32)
    written = field(u32)  # bytes ever copied, and of them those passed on; both wrap
    taken = field(u32)
    buffer = field(u8, BUFFER)


class TransmitTable(Struct):
    """One machine's, shared by its vCPUs."""

    waiting = field(u32)  # 1 when there may be output to pass on
    slices = field(u32)  # how many were over since then
    enough = field(u32)  # 1 when it is not to wait for more
    count = field(u32)
    queues = field(TransmitQueue, QUEUES)


@staged
def output_waits(cpu: Any) -> Any:
    """Return whether output is to be passed on now; called at the end of each slice."""
    due = u32(0)
    if cpu.transmit != 0:
        table = pointer(TransmitTable, cpu.transmit)
        if table.waiting != 0:
            table.slices += 1
            late = (table.slices >= SLICES) | (table.enough != 0) | (cpu.halted != 0)
            due = u32(late)
    return due != 0
