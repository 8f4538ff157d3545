"""A vCPU's local APIC as native code keeps it: the registers' struct, and their numbers.

The registers are the device's (`ringzero.devices.interrupts.lapic`), which moves them here
when an engine offers that; what native code does with them is in
`isa.x86.privileged.apic`. Sections are of Intel SDM vol. 3A, chapter 11.
"""

from __future__ import annotations

from ringzero.native import Struct, field, u32, u64

APIC_PAGE = 0xFEE0_0000
IA32_TSC_DEADLINE = 0x6E0
MSR_X2APIC_FIRST, MSR_X2APIC_LAST = 0x800, 0x83F
# Registers by the index that is both MMIO offset / 16 and MSR - 0x800.
ID, TPR, EOI, ICR_LOW, ICR_HIGH, TIMER_ENTRY = 2, 8, 0xB, 0x30, 0x31, 0x32
TIMER_INITIAL, SELF_IPI = 0x38, 0x3F
BASE_X2APIC, BASE_ENABLE = 1 << 10, 1 << 11
SVR_ENABLE = 1 << 8
LVT_MASKED = 1 << 16
LVT_COUNT, LVT_TIMER, LVT_ERROR = 6, 0, 5
TIMER_MODE, TIMER_PERIODIC, TIMER_DEADLINE = 3 << 17, 1 << 17, 2 << 17
# Of the timer's entry of the local vector table, software writes mode, mask and vector (11.5.1).
TIMER_WRITABLE = TIMER_MODE | LVT_MASKED | 0xFF
ERROR_RECEIVE_VECTOR = 1 << 6
# The interrupt command: its delivery mode, and where it goes (11.6.1).
ICR_WRITABLE = 0xCCFFF
ICR_MODE, ICR_LOGICAL, ICR_SHORTHAND_SHIFT = 7 << 8, 1 << 11, 18
TO_DESTINATION, TO_SELF, TO_ALL, TO_OTHERS = range(4)
BROADCAST_XAPIC, BROADCAST_X2APIC = 0xFF, 0xFFFF_FFFF
# Vectors below are not for interrupts (11.5.2).
FIRST_VECTOR = 16
# 256 vectors, in words of 64.
VECTOR_WORDS = 4
# KVM's paravirtual end of interrupt (Linux Documentation/virt/kvm/x86/msr.rst, MSR 0x4b564d04):
# bit 0 says that it is on, the other bits are the guest-physical address of four bytes.
EOI_FLAG_ENABLE = 1


class ApicRegisters(Struct):
    """One vCPU's. Other threads set bits of `irr` and `tmr` and write `nmi`; else its own does."""

    kept = field(u32)  # 1: native code works on them; 0: the vCPU's controller is Python's
    apic_id = field(u32)
    base = field(u64)
    tpr = field(u32)
    ldr = field(u32)
    dfr = field(u32)
    svr = field(u32)
    esr = field(u32)
    errors = field(u32)  # what the next write of the ESR shows
    icr = field(u64)
    lvt = field(u32, LVT_COUNT)
    timer_initial = field(u32)
    timer_divide = field(u32)
    nmi = field(u32)
    scale = field(u64)  # the counter's ticks for one of the timer's input, 32 bits of them fraction
    isr = field(u64, VECTOR_WORDS)
    irr = field(u64, VECTOR_WORDS)
    tmr = field(u64, VECTOR_WORDS)
    eoi_flag = field(u64)  # as written to MSR_KVM_PV_EOI_EN
    eoi_offered = field(u32)  # 1: the guest may end the interrupt in service by its flag
