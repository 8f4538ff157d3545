"""What native code does with interrupt status registers (`ringzero.isa.x86.irqstatus`)."""

from __future__ import annotations

from ringzero.isa.x86.cpu import Cpu
from ringzero.isa.x86.irqstatus import IrqStatus, IrqStatusTable
from ringzero.isa.x86.privileged.apic import post
from ringzero.native import (
    address_of,
    compare_exchange,
    fetch,
    load,
    native,
    pointer,
    u32,
    u64,
)

# The accesses that drivers make (virtio 1.2, 4.2.2.2).
_WIDTH = 4
_REASONS = IrqStatus.offset_of("reasons")


@native(inline="never")
def raise_reasons(register: IrqStatus, reasons: u32) -> u32:
    """Set bits; 1 when the wire rises, and the interrupt is Python's to send. From any thread."""
    before = fetch("or", u32, address_of(register) + _REASONS, reasons)
    if before != 0 or reasons == 0:
        return u32(0)
    if register.receiver == 0:
        return u32(1)
    post(pointer(Cpu, register.receiver), register.vector, u32(0))
    return u32(0)


@native(inline="never")
def clear_reasons(register: IrqStatus, reasons: u32) -> u32:
    """Clear bits; return those that are left. From any thread."""
    return fetch("and", u32, address_of(register) + _REASONS, ~reasons) & ~reasons


@native(inline="never")
def irq_status_at(cpu: Cpu, physical: u64, size: u64) -> u64:
    """Return the host address of the register that a guest reads; 0: it is none.

    A read changes nothing, so it may come again when its instruction does.
    """
    if cpu.irq_status == 0 or size != _WIDTH:
        return u64(0)
    table = pointer(IrqStatusTable, cpu.irq_status)
    for i in range(u64(table.count)):
        register = table.registers[i]
        if physical == register.status:
            return address_of(register) + _REASONS
    return u64(0)


@native(inline="never")
def acknowledge_reasons(cpu: Cpu, physical: u64, size: u64, value: u64) -> u32:
    """Take a guest's write that clears bits; 0: it must leave the guest as any other.

    So it must when bits are left, for which the wire rises again, or the instruction has had an
    access answered, which runs it again from its start.
    """
    if cpu.irq_status == 0 or size != _WIDTH or cpu.external_done != 0:
        return u32(0)
    table = pointer(IrqStatusTable, cpu.irq_status)
    for i in range(u64(table.count)):
        register = table.registers[i]
        if physical == register.acknowledge:
            where = address_of(register) + _REASONS
            while True:
                seen = u32(load(u32, where))
                if seen & ~u32(value) != 0:
                    return u32(0)
                if compare_exchange(u32, where, seen, u32(0)) == seen:
                    return u32(1)
    return u32(0)
