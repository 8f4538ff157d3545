"""Interrupt status registers of devices, in memory that native code and Python share.

Such a register holds the reasons of a device's interrupt, one a bit. The device sets bits, the
guest reads them, and a write of ones to the register beside it clears them (virtio 1.2, section
4.2.2: InterruptStatus and InterruptACK). The device's wire is high while any bit is set. Native
code serves both accesses without leaving for Python, and sends the interrupt that the first
reason makes: `isa.x86.privileged.irqstatus`. The engine's side is `engine.soft.x86.irqstatus`.
"""

from __future__ import annotations

from ringzero.native import Struct, field, u32, u64

# How many registers there can be; an I/O APIC has 24 pins.
REGISTERS = 24


class IrqStatus(Struct):
    """One register, and where its interrupt goes."""

    status = field(u64)  # guest-physical address at which it is read
    acknowledge = field(u64)  # and that at which writes clear bits of it
    receiver = field(u64)  # host address of the struct of the vCPU to interrupt; 0: Python knows
    vector = field(u32)
    reasons = field(u32)


class IrqStatusTable(Struct):
    """One machine's, shared by its vCPUs."""

    count = field(u32)
    registers = field(IrqStatus, REGISTERS)
